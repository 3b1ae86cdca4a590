"""The machine code of pyramid_pool's CUDA kernels: no spills, 16-byte accesses, no static shared
memory."""

from collections.abc import Callable

import pytest


@pytest.mark.parametrize("arch", [80, 90, 100])
def test_cuda(cuda_code: Callable[..., list], arch: int) -> None:
    kernels = cuda_code("pyramid_pool", arch)
    # plane and channel kernels, the latter with and without vectors; three dtypes; two directions.
    # And the sums of cells added, in three dtypes.
    assert len(kernels) == 3 * 3 * 2 + 3
    for kernel in kernels:
        assert kernel.stack == 0, kernel.name
        assert kernel.spill_bytes == (0, 0), kernel.name
        # All of it is dynamic: the launcher, and in tests the emulation, keeps it below 48 KB.
        assert kernel.static_shared == 0, kernel.name
        if "add_cells" in kernel.name or ("channel" in kernel.name and ", 1>" in kernel.name):
            continue
        accesses = kernel.global_loads if "fwd" in kernel.name else kernel.global_stores
        assert 128 in accesses, f"{kernel.name}: {accesses}"

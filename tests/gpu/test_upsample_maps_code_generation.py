"""The machine code of upsample_maps' CUDA kernels: no spills, 16-byte accesses of the map, no
static shared memory."""

import re
from collections.abc import Callable

import pytest

# Five pairs of dtypes, each channels_last and contiguous, with vectors and with single elements.
KERNELS_PER_DIRECTION = 5 * 2 * 2
# Of three dtypes and of 16 bytes, each with offsets of 32 and of 64 bits.
COPY_KERNELS = 4 * 2
# Of three dtypes.
SEGMENT_KERNELS = 3


@pytest.mark.parametrize("arch", [80, 90, 100])
def test_cuda(cuda_code: Callable[..., list], arch: int) -> None:
    kernels = cuda_code("upsample_maps", arch)
    assert len(kernels) == 2 * KERNELS_PER_DIRECTION + COPY_KERNELS + SEGMENT_KERNELS
    for kernel in kernels:
        assert kernel.stack == 0, kernel.name
        assert kernel.spill_bytes == (0, 0), kernel.name
        # All of it is dynamic: the launcher, and in tests the emulation, keeps it within limits.
        assert kernel.static_shared == 0, kernel.name
        reads, writes = kernel.global_loads, kernel.global_stores
        is_vectorised = re.search(r", [48], (true|false)>|<uint4", kernel.name)
        if not is_vectorised:
            continue
        narrow = [bits for bits in reads if bits != 128]
        is_forward = "fwd" in kernel.name
        if ", false>" in kernel.name:
            # Contiguous: a vector of the map's pixels for each of a thread's channels. Values, of
            # which no 16 bytes are promised, are accessed one by one, as the bias is.
            assert reads.count(128) == (4 if is_forward or "<float" in kernel.name else 8)
            assert 128 not in writes or is_forward, kernel.name
            continue
        # What is not the map: the forward's bias, an element for each channel.
        assert len(narrow) <= is_forward, f"{kernel.name}: {narrow}"
        assert len(reads) > len(narrow), kernel.name
        assert set(writes) == {128}, kernel.name

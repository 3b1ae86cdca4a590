"""The machine code of pyramid_pool's kernels: no spills, 16-byte accesses, little shared memory."""

import re
from collections.abc import Callable

import pytest

from pspfast.kernels import pyramid_pool

ARCHS = [80, 90, 100]
# What an sm_89 multiprocessor lends a block, the least of all chips since sm_80.
MAX_SHARED_BYTES = 99 * 1024
# On sm_100 ptxas saves a few registers, once a program, to keep one more program resident in the
# forward of 16-bit types; values that a loop needs would take hundreds of bytes.
MAX_TRITON_STACK_BYTES = {80: 0, 90: 0, 100: 16}


@pytest.mark.parametrize("arch", ARCHS)
def test_cuda(cuda_code: Callable[..., list], arch: int) -> None:
    kernels = cuda_code("pyramid_pool", arch)
    # plane and channel kernels, the latter with and without vectors; three dtypes; two directions
    assert len(kernels) == 3 * 3 * 2
    for kernel in kernels:
        assert kernel.stack == 0, f"{kernel.name} spills"
        # All of it is dynamic: the launcher, and in tests the emulation, keeps it below 48 KB.
        # 1 KB is the system's own since sm_90.
        assert kernel.shared <= 1024, kernel.name
        reads = re.findall(r"LDG\.E[.\w]*", kernel.text)
        writes = re.findall(r"STG\.E[.\w]*", kernel.text)
        if "channel" in kernel.name and ", 1>" in kernel.name:
            continue
        accesses = reads if "fwd" in kernel.name else writes
        assert any(".128" in access for access in accesses), f"{kernel.name}: {accesses}"


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_triton(
    triton_code: Callable[..., object], channels_last: bool, dtype: str, arch: int
) -> None:
    width = 64
    block_c, block_w, divisor = pyramid_pool._blocks(16, 2048, width, channels_last)
    constants = {
        "BINS": (1, 2, 3, 6),
        "CHANNELS_LAST": channels_last,
        "WIDTH_DIVISOR": divisor,
        "BLOCK_C": block_c,
        "BLOCK_W": block_w,
    }
    forward = triton_code(
        pyramid_pool._fwd_kernel,
        arch,
        dtype,
        constants
        | {
            "BLOCK_S": 64,
            "BLOCK_W": pyramid_pool._forward_columns(
                width, channels_last, 4 if dtype == "fp32" else 2
            ),
        },
        ("channels",),
    )
    backward = triton_code(pyramid_pool._bwd_kernel, arch, dtype, constants, ("channels",))
    for kernel in (forward, backward):
        assert kernel.stack <= MAX_TRITON_STACK_BYTES[arch], kernel.name
        assert kernel.shared <= MAX_SHARED_BYTES
    reads = re.findall(r"ld\.global[.\w:]*|cp\.async\.\w+\.shared\.global", forward.text)
    assert {"ld.global.v4.b32", "cp.async.cg.shared.global"} & set(reads), reads
    assert "st.global.v4.b32" in backward.text

"""The machine code of the CUDA kernels of upsample_cross_entropy, upsample_argmax and
upsample_softmax: no spills, few instructions a pixel and class."""

import re
from collections.abc import Callable

import pytest

ARCHS = pytest.mark.parametrize("arch", [80, 90, 100])
# Three dtypes, many or few rows; the loss with and without label smoothing besides.
FORWARD_KERNELS = 3 * 2
# Three dtypes with and without label smoothing; and the kernel that adds rows, by one logit or 16
# bytes of them.
BACKWARD_KERNELS = 3 * 2 + 3 * 2
# One for each of eight rows of pixels, of a class and a column.
ROWS = 8


def check_resources(kernels: list) -> None:
    for kernel in kernels:
        assert kernel.stack == 0, kernel.name
        assert kernel.spill_bytes == (0, 0), kernel.name
        # All of it is dynamic: the launcher, and in tests the emulation, keeps it below 48 KB.
        assert kernel.static_shared == 0, kernel.name


def check_powers(kernels: list, least: int, most: int) -> None:
    """The loop that takes a power of every class at eight pixels: of these one exponential each,
    cells and pixels from shared memory by 16 bytes, `most` instructions a power."""
    for kernel in kernels:
        bodies = [
            body
            for body in kernel.innermost_loops
            if sum("MUFU.EX2" in code for code in body) >= ROWS
        ]
        assert len(bodies) >= least, kernel.name
        for body in bodies:
            powers = sum("MUFU.EX2" in code for code in body)
            assert powers % ROWS == 0, f"{kernel.name}: {powers}"
            assert len(body) <= most * powers, f"{kernel.name}: {len(body)} / {powers}"
            assert any("LDS.128" in code for code in body), kernel.name
            # No scaling of numbers that are not normal.
            assert not any("FSETP" in code for code in body), kernel.name


def check_no_atomics(kernels: list) -> None:
    for kernel in kernels:
        assert not re.search(r"\b(ATOM|RED)[A-Z]*\b", kernel.sass), kernel.name


@ARCHS
def test_loss(cuda_code: Callable[..., list], arch: int) -> None:
    kernels = cuda_code("upsample_cross_entropy", arch)
    forward = [kernel for kernel in kernels if "loss_fwd" in kernel.name]
    backward = [kernel for kernel in kernels if "loss_bwd" in kernel.name]
    assert len(forward) == 2 * FORWARD_KERNELS
    # And the one that divides the sums.
    assert len([kernel for kernel in kernels if "mean_kernel" in kernel.name]) == 1
    assert len(kernels) - len(forward) - 1 == BACKWARD_KERNELS
    check_resources(kernels)
    for kernel in (kernel for kernel in kernels if "add_rows" in kernel.name):
        if ", 1>" not in kernel.name:
            # Besides the scale, which is one number.
            assert set(kernel.global_loads) == {32, 128}, kernel.name
            assert set(kernel.global_stores) == {128}, kernel.name
    check_powers([k for k in forward if f", {ROWS}, " in k.name], least=1, most=8)
    check_powers(backward, least=1, most=16)
    check_no_atomics(kernels)


@ARCHS
def test_argmax(cuda_code: Callable[..., list], arch: int) -> None:
    kernels = cuda_code("upsample_argmax", arch)
    assert all("argmax_kernel" in kernel.name for kernel in kernels)
    assert len(kernels) == FORWARD_KERNELS
    check_resources(kernels)
    check_no_atomics(kernels)


@ARCHS
def test_softmax(cuda_code: Callable[..., list], arch: int) -> None:
    kernels = cuda_code("upsample_softmax", arch)
    assert all("softmax_kernel" in kernel.name for kernel in kernels)
    assert len(kernels) == FORWARD_KERNELS
    check_resources(kernels)
    check_powers([k for k in kernels if f", {ROWS}>" in k.name], least=1, most=8)
    check_no_atomics(kernels)

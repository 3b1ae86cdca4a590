"""The CUDA kernels of pyramid_pool on the emulation, against float64 PyTorch."""

import ctypes
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

Run = Callable[..., Tensor]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
PYRAMID = (1, 2, 3, 6)
CASES = [
    ((2, 3, 13, 11), PYRAMID),
    ((1, 8, 60, 60), PYRAMID),
    ((2, 16, 7, 5), PYRAMID),
    ((3, 40, 2, 1), PYRAMID),
    ((2, 8, 1, 1), PYRAMID),
    ((1, 1, 3, 2), (1,)),
    # More rows than one tile of shared memory holds, and one row that exceeds it.
    ((1, 2, 97, 97), PYRAMID),
    ((1, 3, 5, 9000), PYRAMID),
    # As many levels and bins as there may be.
    ((1, 8, 30, 31), (8, 7, 5, 4, 3, 2, 1, 34)),
    # So many blocks that each takes all rows of cells.
    ((264, 8, 4, 5), PYRAMID),
    # More cells than fit into shared memory with 16 bytes of channels.
    ((1, 8, 41, 41), (33,)),
]


@pytest.fixture
def pyramid_pool(emulated: Callable[[str], ctypes.CDLL]) -> Run:
    """Runs forward, x [N, C, H, W] to [N, C, S], or backward, to the shape `size`; `shift` elements
    lie between a 16-byte boundary and every tensor."""
    library = emulated("pyramid_pool")

    def run(source: Tensor, bins: tuple[int, ...], size: torch.Size, shift: int = 0) -> Tensor:
        channels_last = source.stride(1) == 1 and source.shape[1] > 1
        backward = source.dim() == 3
        dense = source.movedim(1, -1) if channels_last else source
        given = torch.empty(shift + source.numel(), dtype=source.dtype)
        given[shift:] = dense.flatten()
        result = torch.full((shift + size.numel(),), torch.nan, dtype=source.dtype)
        error = library.pyramid_pool(
            *(ctypes.c_int64(extent) for extent in (size if backward else source.shape)),
            ctypes.c_bool(channels_last),
            DTYPES.index(source.dtype),
            (ctypes.c_int64 * len(bins))(*bins),
            len(bins),
            ctypes.c_bool(backward),
            ctypes.c_void_p(given[shift:].data_ptr()),
            ctypes.c_void_p(result[shift:].data_ptr()),
        )
        assert error == 0
        assert result[:shift].isnan().all()
        if not channels_last:
            return result[shift:].view(size)
        return result[shift:].view(size[0], *size[2:], size[1]).movedim(-1, 1)

    return run


def reference(x: Tensor, bins: tuple[int, ...]) -> Tensor:
    return torch.cat([F.adaptive_avg_pool2d(x, b).flatten(2) for b in bins], dim=2)


def assert_exact_to_rounding(got: Tensor, expected: Tensor) -> None:
    """float32 sums, rounded once to the dtype of the result."""
    rounding = 0.51 * torch.finfo(got.dtype).eps
    torch.testing.assert_close(got.double(), expected, rtol=max(rounding, 1e-6), atol=1e-6)


def as_given(x: Tensor, channels_last: bool) -> Tensor:
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if channels_last else x


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "bins"), CASES, ids=str)
def test_forward_and_backward(
    pyramid_pool: Run,
    shape: tuple[int, ...],
    bins: tuple[int, ...],
    dtype: torch.dtype,
    channels_last: bool,
) -> None:
    x = as_given(torch.randn(shape).to(dtype), channels_last)
    exact_x = x.double().requires_grad_()
    expected = reference(exact_x, bins)
    grad = as_given(torch.randn(expected.shape).to(dtype), channels_last)
    expected.backward(grad.double())
    assert exact_x.grad is not None
    assert_exact_to_rounding(pyramid_pool(x, bins, expected.shape), expected.detach())
    assert_exact_to_rounding(pyramid_pool(grad, bins, x.shape), exact_x.grad)


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("shift", [1, 3])
def test_any_alignment_gives_the_same_bits(
    pyramid_pool: Run, shift: int, channels_last: bool
) -> None:
    for dtype in DTYPES:
        x = as_given(torch.randn(2, 8, 13, 11).to(dtype), channels_last)
        pooled = pyramid_pool(x, PYRAMID, torch.Size((2, 8, 50)))
        shifted = pyramid_pool(x, PYRAMID, torch.Size((2, 8, 50)), shift)
        grad_x = pyramid_pool(pooled, PYRAMID, x.shape)
        shifted_grad_x = pyramid_pool(pooled, PYRAMID, x.shape, shift)
        if channels_last:
            # Without 16-byte accesses the lanes of a warp share a cell's pixels differently.
            torch.testing.assert_close(shifted, pooled)
        else:
            assert torch.equal(shifted, pooled)
        assert torch.equal(shifted_grad_x, grad_x)


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_repeats_bit_for_bit(pyramid_pool: Run, channels_last: bool) -> None:
    x = as_given(torch.randn(2, 8, 13, 11), channels_last)
    first, second = (pyramid_pool(x, PYRAMID, torch.Size((2, 8, 50))) for _ in range(2))
    assert torch.equal(first, second)
    first, second = (pyramid_pool(first, PYRAMID, x.shape) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_infinity_stays_in_its_bins(pyramid_pool: Run, channels_last: bool) -> None:
    x = torch.randn(1, 8, 12, 12)
    x[0, 3, 1, 1] = torch.inf
    x = as_given(x, channels_last)
    pooled = pyramid_pool(x, PYRAMID, torch.Size((1, 8, 50)))
    assert torch.equal(pooled.isinf(), reference(x, PYRAMID).isinf())
    assert not pooled.isnan().any()


@pytest.mark.parametrize("sanitizers", ["thread", "address,undefined"])
def test_sanitizers_are_silent(sanitized: Callable[..., str], sanitizers: str) -> None:
    assert sanitized("pyramid_pool_main", sanitizers) == ""

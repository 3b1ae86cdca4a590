"""The Triton kernels of pyramid_pool in the interpreter, against float64 PyTorch."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pspfast.kernels import pyramid_pool
from pspfast.kernels.pyramid_pool import pyramid_pool_backward, pyramid_pool_forward

PYRAMID = (1, 2, 3, 6)
# The interpreter takes its time: few bands, few programs.
CASES = [
    ((2, 17, 5, 7), (2, 3), torch.float32),
    ((1, 3, 12, 6), PYRAMID, torch.float32),
    ((1, 3, 7, 6), (1, 3), torch.float16),
    ((1, 3, 5, 6), (1, 2), torch.bfloat16),
    # More columns than a program holds, and more bins.
    ((1, 2, 2, 70), (3,), torch.float32),
    ((1, 2, 3, 4), (12,), torch.float32),
    ((2, 2, 1, 1), (1, 2), torch.float32),
    ((0, 2, 4, 4), PYRAMID, torch.float32),
    ((2, 0, 4, 4), PYRAMID, torch.float32),
]


def reference(x: Tensor, bins: tuple[int, ...]) -> Tensor:
    return torch.cat([F.adaptive_avg_pool2d(x, b).flatten(2) for b in bins], dim=2)


def as_given(x: Tensor, channels_last: bool) -> Tensor:
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if channels_last else x


def assert_exact_to_rounding(got: Tensor, expected: Tensor) -> None:
    """float32 sums, rounded once to the dtype of the result."""
    # The interpreter truncates to bfloat16.
    half_ulps = 2 if got.dtype == torch.bfloat16 else 1
    rounding = 0.51 * half_ulps * torch.finfo(got.dtype).eps
    torch.testing.assert_close(got.double(), expected, rtol=max(rounding, 1e-6), atol=1e-6)


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize(("shape", "bins", "dtype"), CASES, ids=str)
def test_forward_and_backward(
    shape: tuple[int, ...], bins: tuple[int, ...], dtype: torch.dtype, channels_last: bool
) -> None:
    x = as_given(torch.randn(shape).to(dtype), channels_last)
    exact_x = x.double().requires_grad_()
    expected = reference(exact_x, bins)
    pooled = pyramid_pool_forward(x, bins)
    assert_exact_to_rounding(pooled, expected.detach())

    if x.numel() == 0:
        return
    grad = torch.randn(expected.shape).to(dtype)
    expected.backward(grad.double())
    assert exact_x.grad is not None
    # As autograd calls it: x is contiguous where both formats describe it.
    channels_last = not x.is_contiguous()
    grad_x = pyramid_pool_backward(grad, bins, *shape[2:], channels_last)
    assert_exact_to_rounding(grad_x, exact_x.grad)
    assert grad_x.stride() == x.stride()
    assert pooled.is_contiguous() or pooled.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("enough", [1, 3], ids=["all_rows", "segments_of_two_or_three_rows"])
def test_rows_of_a_program(
    enough: int, channels_last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above, maps are so small that every program has a single row."""
    monkeypatch.setattr(pyramid_pool, "ENOUGH_PROGRAMS", enough)
    shape, bins = (2, 17, 5, 7), (2, 3)
    test_forward_and_backward(shape, bins, torch.float32, channels_last)
    test_forward_and_backward((1, 16, 7, 6), bins, torch.float16, channels_last)


def test_other_strides_are_copied() -> None:
    x = torch.randn(1, 3, 5, 8)[..., ::2]
    assert_exact_to_rounding(pyramid_pool_forward(x, (2,)), reference(x.double(), (2,)))


def test_infinity_stays_in_its_bins() -> None:
    x = torch.randn(1, 2, 6, 6)
    x[0, 1, 1, 1] = torch.inf
    pooled = pyramid_pool_forward(x, (1, 3))
    assert torch.equal(pooled.isinf(), reference(x, (1, 3)).isinf())
    assert not pooled.isnan().any()

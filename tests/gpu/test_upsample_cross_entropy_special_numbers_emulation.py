"""The CUDA kernels of upsample_cross_entropy on the emulation: large logits, and NaN."""

import ctypes
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from emulated_cross_entropy import CASES, LossCase, UpsampleLoss, make_target, reference
from emulated_upsample import FORMATS, check_labels_of_nan, reads_nan, upsampled
from torch import Tensor


@pytest.fixture
def upsample_cross_entropy(emulated: Callable[[str], ctypes.CDLL]) -> UpsampleLoss:
    return UpsampleLoss(emulated("upsample_cross_entropy"))


def spread(shape: tuple[int, ...], offset: float, range_: float) -> Tensor:
    return offset + range_ * (torch.rand(shape) - 0.5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(
    ("offset", "range_"), [(0, 200), (1e4, 1), (-1e4, 20), (1e4, 200), (0, 2e4)]
)
@pytest.mark.parametrize("shape", [(1, 9, 3, 4), (1, 600, 2, 5)], ids=str)
def test_large_logits_are_as_exact_as_eager(
    upsample_cross_entropy: UpsampleLoss,
    shape: tuple,
    offset: float,
    range_: float,
    smoothing: float,
) -> None:
    torch.manual_seed(0)
    case = LossCase(shape, (17, 25), align_corners=False, smoothing=smoothing)
    logits = spread(case.shape, offset, range_).requires_grad_()
    exact = logits.detach().double().requires_grad_()
    target = upsampled(case, logits.detach()).argmax(1)
    target[:, ::2] = make_target(case)[:, ::2]
    got = upsample_cross_entropy.forward(case, logits.detach(), target, None, channels_last=False)
    grad = upsample_cross_entropy.backward(
        case, logits.detach(), target, None, got.lse, 1.0, channels_last=False
    )
    expected, eager = (reference(case, x, target, None) for x in (exact, logits))
    (expected_grad,), (eager_grad,) = (
        torch.autograd.grad(y, x) for y, x in ((expected, exact), (eager, logits))
    )
    # What a logit's rounding is worth, in as many pixels, and in `lse`, which is rounded alike and
    # all that backward knows of a sum of powers.
    rounding = torch.finfo(torch.float32).eps / 2 * logits.abs().max()
    pixels = target.numel() ** 0.5
    assert abs(got.loss - expected) <= 2 * abs(eager - expected) + 2 * rounding * pixels
    error, eager_error = ((x.double() - expected_grad).norm() for x in (grad, eager_grad))
    assert error <= 2 * eager_error + (rounding + 1e-6) * expected_grad.norm()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("lead", [0.0, 5.0, 12.0])
@pytest.mark.parametrize("classes", [9, 600])
def test_largest_logit_cancels(
    upsample_cross_entropy: UpsampleLoss, classes: int, lead: float, smoothing: float
) -> None:
    """A loss that is much less than the logits' rounding is exact to that of a sum of powers."""
    case = LossCase((1, classes, 2, 5), (9, 33), smoothing=smoothing)
    logits = torch.full(case.shape, 1e4)
    logits[:, classes - 1] += lead
    target = torch.full((1, *case.size), classes - 1)
    got = upsample_cross_entropy.forward(case, logits, target, None, channels_last=False)
    expected = reference(case, logits.double(), target, None)
    torch.testing.assert_close(got.loss, expected.item(), rtol=2e-6, atol=6e-8 * target.numel())


@FORMATS
def test_nan_stays_with_its_neighbours(
    upsample_cross_entropy: UpsampleLoss, channels_last: bool
) -> None:
    """Of a row of logits, in the rows before and behind; of an image, in the image."""
    case = LossCase((2, 3, 4, 4), (25, 25))
    clean, target = torch.randn(case.shape), make_target(case)
    with_nan = clean.clone()
    with_nan[0, :, 3] = torch.nan
    grads = []
    for logits in (clean, with_nan):
        lse = upsample_cross_entropy.forward(case, logits, target, None, channels_last).lse
        grads.append(
            upsample_cross_entropy.backward(case, logits, target, None, lse, 1.0, channels_last)
        )
    assert grads[1][0, :, 3].isnan().all()
    assert torch.equal(grads[0][0, :, :2], grads[1][0, :, :2])
    assert torch.equal(grads[0][1], grads[1][1])


@FORMATS
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("case", CASES[:7], ids=str)
def test_label_is_the_first_class_that_is_nan(
    upsample_cross_entropy: UpsampleLoss, case: LossCase, smoothing: float, channels_last: bool
) -> None:
    torch.manual_seed(0)
    case, target = replace(case, smoothing=smoothing), make_target(case)

    def labels_of(logits: Tensor) -> Tensor:
        got = upsample_cross_entropy.forward(case, logits, target, None, channels_last, torch.int32)
        without = upsample_cross_entropy.forward(case, logits, target, None, channels_last)
        # Where a pixel reads a NaN its loss is NaN, whether or not labels are asked for.
        torch.testing.assert_close(got.lse, without.lse, rtol=0, atol=0, equal_nan=True)
        assert got.lse[reads_nan(logits, case).any(1)].isnan().all()
        assert got.labels is not None
        return got.labels

    check_labels_of_nan(labels_of, case, torch.randn(case.shape))

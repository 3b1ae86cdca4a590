"""The Triton kernels of upsample_cross_entropy in the interpreter: logits that are large, equal, or
NaN."""

import pytest
import torch
import torch.nn.functional as F
from cross_entropy_cases import IGNORED, Case, some_logits, some_target
from maps import both_formats, every_dtype
from upsample_logits import NAN_SIZE, every_nan, first_nan_or_largest, logits_with_nan, upsampled

from pspfast.kernels.upsample_cross_entropy import (
    upsample_cross_entropy_backward,
    upsample_cross_entropy_forward,
)


@both_formats
@pytest.mark.parametrize("scale", [1e2, 1e4, 1e30])
def test_large_logits(scale: float, channels_last: bool) -> None:
    case = Case(1, 9, (3, 2), (9, 5))
    logits, target = some_logits(case, channels_last, scale), some_target(case)
    arguments = (IGNORED, True, 0.0)
    loss, lse, weight_sum, _ = upsample_cross_entropy_forward(
        logits, target, None, *arguments, torch.uint8, False
    )
    exact = logits.double().requires_grad_()
    expected = F.cross_entropy(upsampled(exact, case.size), target, ignore_index=IGNORED)
    torch.testing.assert_close(loss.double(), expected.detach(), rtol=1e-6, atol=0)
    expected.backward()
    got = upsample_cross_entropy_backward(1 / weight_sum, logits, target, None, lse, *arguments)
    torch.testing.assert_close(got.double(), exact.grad, rtol=1e-3, atol=1e-4)


def test_logits_that_differ_much_between_neighbours() -> None:
    logits = torch.full((1, 3, 1, 2), -100.0)
    logits[0, 0, 0, 0] = logits[0, 1, 0, 1] = 100.0
    target = torch.zeros(1, 1, 9, dtype=torch.long)
    loss, *_ = upsample_cross_entropy_forward(
        logits, target, None, IGNORED, True, 0.0, torch.uint8, False
    )
    expected = F.cross_entropy(upsampled(logits.double(), (1, 9)), target)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("i_class", [0, 4])
def test_nan_reaches_the_loss(i_class: int) -> None:
    logits = torch.randn(1, 5, 2, 2)
    logits[0, i_class, 1, 1] = torch.nan
    target = torch.full((1, 3, 3), 2)
    loss, *_ = upsample_cross_entropy_forward(
        logits, target, None, IGNORED, True, 0.0, torch.uint8, False
    )
    assert loss.isnan()


@both_formats
@pytest.mark.parametrize("first", [0, 3, 15])
def test_of_equal_logits_the_first_class(first: int, channels_last: bool) -> None:
    case = Case(1, 34, (2, 2), (3, 3))
    logits = some_logits(case, channels_last).clamp_(max=3.0)
    logits[:, first] = logits[:, first + 1] = logits[:, first + 17] = 4.0
    *_, labels = upsample_cross_entropy_forward(
        logits, torch.zeros(1, 3, 3).long(), None, IGNORED, True, 0.0, torch.int32, True
    )
    assert labels.dtype == torch.int32
    assert (labels == first).all()


@every_dtype
@both_formats
@every_nan
def test_the_first_nan_is_the_label(
    classes: int, nan_classes: tuple[int, ...], channels_last: bool, dtype: torch.dtype
) -> None:
    logits = logits_with_nan(classes, nan_classes, dtype, channels_last)
    target = torch.zeros(2, *NAN_SIZE, dtype=torch.long)
    *_, labels = upsample_cross_entropy_forward(
        logits, target, None, IGNORED, True, 0.0, torch.int64, True
    )
    assert torch.equal(labels, first_nan_or_largest(logits))

"""The Triton kernels of upsample_cross_entropy in the interpreter: targets and class weights of all
kinds."""

import pytest
import torch
import torch.nn.functional as F
from cross_entropy_cases import (
    IGNORED,
    Case,
    assert_exact_to_rounding,
    some_logits,
    some_target,
)
from upsample_logits import upsampled

from pspfast.kernels.upsample_cross_entropy import (
    upsample_cross_entropy_backward,
    upsample_cross_entropy_forward,
)


@pytest.mark.parametrize("weighted", [False, True])
def test_nothing_counts(weighted: bool) -> None:
    case = Case(2, 3, (2, 3), (5, 4))
    logits, target = some_logits(case), torch.full((2, 5, 4), IGNORED)
    weight = torch.ones(3) if weighted else None
    loss, lse, weight_sum, _ = upsample_cross_entropy_forward(
        logits, target, weight, IGNORED, True, 0.1, torch.uint8, False
    )
    assert loss == 0
    assert weight_sum == 0
    grad = upsample_cross_entropy_backward(
        torch.tensor(1.0), logits, target, weight, lse, IGNORED, True, 0.1
    )
    assert torch.equal(grad, torch.zeros_like(logits))


def test_classes_without_weight() -> None:
    case = Case(1, 3, (2, 3), (5, 4))
    logits, target = some_logits(case), some_target(case)
    outputs = upsample_cross_entropy_forward(
        logits, target, torch.zeros(3), IGNORED, True, 0.0, torch.uint8, False
    )
    assert outputs[0] == outputs[2] == 0


def test_no_image() -> None:
    logits, target = torch.zeros(0, 3, 4, 5), torch.zeros(0, 9, 7, dtype=torch.long)
    loss, lse, weight_sum, labels = upsample_cross_entropy_forward(
        logits, target, None, IGNORED, True, 0.0, torch.uint8, True
    )
    assert loss == weight_sum == 0
    assert lse.shape == labels.shape == target.shape
    grad = upsample_cross_entropy_backward(
        weight_sum, logits, target, None, lse, IGNORED, True, 0.0
    )
    assert grad.shape == logits.shape


WRONG = "upsample_cross_entropy: target: a label is neither a class nor ignore_index"


@pytest.mark.parametrize("label", [-1, 3, 254, 2**32])
def test_wrong_labels(label: int) -> None:
    # In the first of a program's rounds over rows.
    case = Case(2, 3, (2, 3), (20, 4))
    target = some_target(case)
    target[1, 2, 3] = label
    with pytest.raises(RuntimeError, match=WRONG):
        upsample_cross_entropy_forward(
            some_logits(case), target, None, IGNORED, True, 0.0, torch.uint8, False
        )


@pytest.mark.parametrize("ignored", [-100, 1])
def test_any_label_is_ignored(ignored: int) -> None:
    case = Case(1, 3, (2, 3), (5, 4))
    logits, target = some_logits(case), some_target(case)
    target[target == IGNORED] = ignored
    arguments = (ignored, True, 0.0)
    loss, lse, weight_sum, _ = upsample_cross_entropy_forward(
        logits, target, None, *arguments, torch.uint8, False
    )
    exact = logits.double().requires_grad_()
    expected = F.cross_entropy(upsampled(exact, case.size), target, ignore_index=ignored)
    torch.testing.assert_close(loss.double(), expected.detach(), rtol=2e-6, atol=0)
    expected.backward()
    got = upsample_cross_entropy_backward(1 / weight_sum, logits, target, None, lse, *arguments)
    assert_exact_to_rounding(got, exact.grad)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_targets_of_other_integers_and_strides(dtype: torch.dtype) -> None:
    case = Case(2, 3, (1, 2), (3, 4))
    logits, target = some_logits(case), some_target(case)
    other = torch.stack([target, target * 0], dim=3).to(dtype)[..., 0]
    weight = torch.rand(3, dtype=torch.float64)
    arguments = (IGNORED, False, 0.0)
    outputs = []
    for t, w in ((target, weight.float()), (other, weight)):
        loss, lse, _, labels = upsample_cross_entropy_forward(
            logits, t, w, *arguments, torch.uint8, True
        )
        grad = upsample_cross_entropy_backward(loss, logits, t, w, lse, *arguments)
        outputs.append([loss, lse, labels, grad])
    for same, got in zip(*outputs, strict=True):
        assert torch.equal(same, got)

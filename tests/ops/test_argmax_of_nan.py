"""Labels where logits are NaN: as torch.argmax has it, the first class that is NaN."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from instruction_sets import assert_passes_at, at_lower_isas
from op_tester import DTYPES, LAYOUTS, skip_float64_on_a_gpu, with_reference
from torch import Tensor

from pspfast.ops import upsample_argmax, upsample_cross_entropy

# Logits [N, K, h, w] and the size of the image.
CASES = [
    ((2, 3, 5, 5), (9, 9)),
    ((1, 5, 20, 70), (7, 19)),
    ((1, 21, 9, 40), (65, 57)),
    ((1, 300, 2, 17), (9, 129)),
    ((2, 7, 1, 1), (33, 18)),
]


def both_labels(logits: Tensor, size: tuple[int, int], align_corners: bool = True) -> list[Tensor]:
    """Of either op."""
    target = torch.zeros(logits.shape[0], *size, dtype=torch.long, device=logits.device)
    _, besides = upsample_cross_entropy(
        logits, target, align_corners=align_corners, return_argmax=True
    )
    labels = upsample_argmax(logits, size, align_corners=align_corners)
    return [labels.long(), besides.long()]


def sources(size: int, count: int, align_corners: bool) -> tuple[Tensor, Tensor]:
    """The two of `count` sources that each position of an axis of `size` reads, exactly."""
    position = torch.arange(size)
    if align_corners:
        low = position * (count - 1) // max(size - 1, 1)
    else:
        low = ((2 * position + 1) * count - size).clamp(min=0) // (2 * size)
    return low, (low + 1).clamp(max=count - 1)


def reads_nan(logits: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """[N, K, H, W]: whether one of the four logits that a pixel reads is NaN."""
    is_nan = logits.isnan()
    for axis in (2, 3):
        low, high = sources(size[axis - 2], logits.shape[axis], align_corners)
        is_nan = is_nan.index_select(axis, low) | is_nan.index_select(axis, high)
    return is_nan


@with_reference
@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_class_of_nan(
    dtype: torch.dtype, layout: Any, align_corners: bool, device: torch.device
) -> None:
    skip_float64_on_a_gpu(dtype, device)
    for shape, size in CASES:
        for of_nan in ([0], [1], [shape[1] - 1], [shape[1] - 1, 1]):
            logits = torch.randn(shape).to(dtype)
            logits[:, of_nan] = torch.nan
            full = F.interpolate(logits, size, mode="bilinear", align_corners=align_corners)
            expected = full.argmax(1)
            assert (expected == min(of_nan)).all()
            for labels in both_labels(layout(logits.to(device)), size, align_corners):
                assert torch.equal(labels.cpu(), expected)


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_some_logits_are_nan(
    dtype: torch.dtype, layout: Any, align_corners: bool, device: torch.device
) -> None:
    """Pixels that read none of them have the label that they have without them."""
    skip_float64_on_a_gpu(dtype, device)
    for shape, size in CASES:
        logits = torch.randn(shape).to(dtype)
        finite = both_labels(layout(logits.to(device)), size, align_corners)
        logits[torch.rand(shape) < 3 / logits[0].numel()] = torch.nan
        logits[0, -1, -1, -1] = torch.nan
        is_nan = reads_nan(logits, size, align_corners)
        for got, without in zip(
            both_labels(layout(logits.to(device)), size, align_corners), finite, strict=True
        ):
            # Of equal numbers argmax is the first.
            expected = torch.where(is_nan.any(1), is_nan.byte().argmax(1), without.cpu())
            assert torch.equal(got.cpu(), expected)


@pytest.mark.parametrize("masked", [[0], [1], [2], [0, 2]], ids=str)
def test_masked_classes_are_never_chosen(masked: list[int], device: torch.device) -> None:
    """Of classes whose logits are all -inf, which leave NaN of each other."""
    logits = torch.randn(2, 5, 6, 7, device=device)
    without = logits.clone()
    without[:, masked] = -1e4
    expected = both_labels(without, (33, 29))[0]
    logits[:, masked] = -torch.inf
    for labels in both_labels(logits, (33, 29)):
        assert torch.equal(labels, expected)
    # A NaN wins over them all the same.
    logits[:, 3] = torch.nan
    for labels in both_labels(logits, (33, 29)):
        assert (labels == 3).all()


def test_loss_and_gradient_do_not_depend_on_labels(device: torch.device) -> None:
    logits = torch.randn(2, 5, 6, 7, device=device)
    logits[0, 2, 3, 4] = torch.nan
    target = torch.randint(5, (2, 33, 29), device=device)
    losses = []
    for return_argmax in (False, True):
        leaf = logits.clone().requires_grad_()
        loss = upsample_cross_entropy(leaf, target, return_argmax=return_argmax)
        loss = loss[0] if return_argmax else loss
        losses.append([loss.detach(), *torch.autograd.grad(loss, leaf)])
    for one, other in zip(*losses, strict=True):
        assert one.isnan().any()
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


@at_lower_isas
def test_lower_isas(isa: str) -> None:
    tests = [f"{__file__}::{name}" for name in ("test_class_of_nan", "test_some_logits_are_nan")]
    assert_passes_at(isa, "-k", "cpu", *tests)

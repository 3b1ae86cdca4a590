"""The Triton kernels of upsample_cross_entropy in the interpreter, against float64 PyTorch."""

import numpy as np
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
from maps import BFLOAT, HALF, both_alignments, both_formats
from torch import Tensor
from upsample_logits import assert_written_once, upsampled

from pspfast import backends
from pspfast.kernels import upsample_cross_entropy, upsample_tiles
from pspfast.kernels.jit.common.mean_loss import mean_loss_kernel
from pspfast.kernels.upsample_cross_entropy import (
    upsample_cross_entropy_backward,
    upsample_cross_entropy_forward,
)

# The interpreter takes its time: few tiles.
CASES = [
    Case(2, 5, (3, 4), (9, 7)),
    Case(1, 5, (2, 3), (6, 4), smoothing=0.1),
    Case(1, 3, (3, 2), (5, 6), HALF),
    Case(1, 3, (3, 2), (5, 6), BFLOAT, smoothing=0.2, weighted=True),
    # Several blocks of classes, backward and forward, and one that is not full.
    Case(1, 34, (2, 2), (3, 4), weighted=True),
    Case(1, 18, (2, 2), (3, 4), HALF, smoothing=0.1),
    # More columns of logits than a backward program holds, 16, and than there are of the image.
    Case(1, 2, (1, 20), (1, 20)),
    Case(1, 2, (2, 35), (2, 11), smoothing=1.0, weighted=True),
    # Backward programs of fewer columns, several rounds each, because there are few.
    Case(1, 2, (1, 20), (1, 100)),
    # More rows of logits than the image has.
    Case(2, 3, (7, 3), (2, 3), weighted=True),
    # More rows between two of logits than a tile holds, 8, and more columns than two tiles' round.
    Case(1, 2, (2, 1), (20, 40)),
    # More columns of the image than a forward program holds.
    Case(1, 2, (1, 2), (1, 260), weighted=True),
    Case(2, 3, (1, 1), (2, 3), smoothing=0.1),
    Case(1, 1, (2, 2), (3, 3)),
    # More classes than are summed at a time, 128.
    Case(1, 130, (1, 1), (1, 2), smoothing=0.1, weighted=True),
    Case(1, 1, (1, 1), (1, 1), smoothing=0.1),
]


@both_formats
@both_alignments
@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward_and_backward(case: Case, align_corners: bool, channels_last: bool) -> None:
    logits, target = some_logits(case, channels_last, scale=3.0), some_target(case)
    weight = torch.rand(case.classes) + 0.5 if case.weighted else None
    arguments = (IGNORED, align_corners, case.smoothing)
    loss, lse, weight_sum, labels = upsample_cross_entropy_forward(
        logits, target, weight, *arguments, torch.uint8, True
    )

    exact = logits.double().requires_grad_()
    full = upsampled(exact, case.size, align_corners)
    exact_weight = None if weight is None else weight.double()
    expected = F.cross_entropy(
        full, target, exact_weight, ignore_index=IGNORED, label_smoothing=case.smoothing
    )
    assert loss.dtype == lse.dtype == weight_sum.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected.detach(), rtol=2e-6, atol=1e-6)
    torch.testing.assert_close(lse.double(), full.logsumexp(1).detach(), rtol=1e-6, atol=1e-6)
    counted = target[target != IGNORED]
    count = counted.numel() if weight is None else weight.double()[counted].sum().item()
    assert weight_sum.item() == pytest.approx(count, rel=1e-6)
    assert labels.dtype == torch.uint8
    # Equal to rounding, where not equal.
    chosen = full.gather(1, labels[:, None].long())[:, 0]
    torch.testing.assert_close(chosen, full.amax(1), rtol=0, atol=1e-5)

    (3.0 * expected).backward()
    assert exact.grad is not None
    got = upsample_cross_entropy_backward(3.0 / weight_sum, logits, target, weight, lse, *arguments)
    assert_exact_to_rounding(got, exact.grad)
    assert got.dtype == case.dtype
    assert got.stride() == logits.stride()


@both_formats
def test_every_number_is_written_once(written: list[np.ndarray], channels_last: bool) -> None:
    """By tiles that fill their blocks neither in rows nor in columns."""
    case = Case(1, 3, (3, 20), (11, 40))
    logits, target = some_logits(case, channels_last), some_target(case)
    arguments = (IGNORED, False, 0.0)
    _, lse, weight_sum, labels = upsample_cross_entropy_forward(
        logits, target, None, *arguments, torch.int32, True
    )
    (programs,) = upsample_tiles.plan(logits, *case.size, False).grid()
    # And the loss, the sum of weights, and whether all labels are right.
    assert_written_once(written, lse.numel() + labels.numel() + 3 * programs + 3)
    upsample_cross_entropy_backward(weight_sum, logits, target, None, lse, *arguments)
    assert_written_once(written, logits.numel())


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("source", [(9, 1), (3, 2)], ids=str)
def test_rows_of_a_backward_tile_change_no_bit(
    monkeypatch: pytest.MonkeyPatch, source: tuple[int, int], align_corners: bool
) -> None:
    """Few programs take one row of logits each; many take up to eight."""
    case = Case(1, 2, source, (11, 3))
    logits, target = some_logits(case), some_target(case)
    arguments = (IGNORED, align_corners, 0.0)
    _, lse, weight_sum, _ = upsample_cross_entropy_forward(
        logits, target, None, *arguments, torch.uint8, False
    )
    inputs = (1 / weight_sum, logits, target, None, lse)
    each = upsample_cross_entropy_backward(*inputs, *arguments)
    for most_rows in (2, 8):
        monkeypatch.setattr(upsample_cross_entropy, "_ENOUGH_PROGRAMS", 1)
        monkeypatch.setattr(upsample_cross_entropy, "_MOST_ROWS", most_rows)
        assert torch.equal(upsample_cross_entropy_backward(*inputs, *arguments), each)


@both_alignments
def test_index_maths_of_long_axes(monkeypatch: pytest.MonkeyPatch, align_corners: bool) -> None:
    """In 64 bits it gives the same."""
    case = Case(1, 3, (1, 4), (5, 7))
    logits, target = some_logits(case), some_target(case)
    arguments = (IGNORED, align_corners, 0.0)
    results = []
    for limit in (upsample_tiles._INT32_PRODUCT, 1):
        monkeypatch.setattr(upsample_tiles, "_INT32_PRODUCT", limit)
        outputs = upsample_cross_entropy_forward(
            logits, target, None, *arguments, torch.uint8, True
        )
        grad = upsample_cross_entropy_backward(
            torch.tensor(1.0), logits, target, None, outputs[1], *arguments
        )
        results.append([*outputs, grad])
    for narrow, wide in zip(*results, strict=True):
        assert torch.equal(narrow, wide)


def test_logits_of_other_strides_are_copied() -> None:
    case = Case(1, 3, (2, 6), (5, 4))
    wide, target = some_logits(case)[..., ::2], some_target(case)
    arguments = (IGNORED, False, 0.0)
    outputs = []
    for logits in (wide, wide.contiguous()):
        loss, lse, _, _ = upsample_cross_entropy_forward(
            logits, target, None, *arguments, torch.uint8, False
        )
        grad = upsample_cross_entropy_backward(loss, logits, target, None, lse, *arguments)
        assert grad.is_contiguous()
        outputs.append([loss, lse, grad])
    for got, same in zip(*outputs, strict=True):
        assert torch.equal(same, got)


def test_the_same_bits_in_any_batch() -> None:
    case = Case(2, 5, (2, 3), (3, 4), smoothing=0.1)
    logits, target = some_logits(case), some_target(case)
    arguments = (IGNORED, True, case.smoothing)

    def results(sample: slice) -> list[Tensor]:
        inputs = (logits[sample], target[sample], None)
        loss, lse, _, _ = upsample_cross_entropy_forward(*inputs, *arguments, torch.uint8, False)
        grad = upsample_cross_entropy_backward(torch.tensor(1.0), *inputs, lse, *arguments)
        return [lse, grad, loss]

    both, again, alone = results(slice(0, 2)), results(slice(0, 2)), results(slice(1, 2))
    for first, second in zip(both, again, strict=True):
        assert torch.equal(first, second)
    for of_one, of_both in zip(alone[:2], both[:2], strict=True):
        assert torch.equal(of_one[0], of_both[1])


def test_op_and_its_gradient() -> None:
    case = Case(2, 3, (2, 3), (5, 4))
    logits, target = some_logits(case).requires_grad_(), some_target(case)
    weight = torch.rand(3)
    backends.load_triton_ops()
    loss, _, _, labels = torch.ops.pspfast.upsample_cross_entropy_triton(
        logits, target, weight, IGNORED, False, 0.1, True
    )
    expected = F.cross_entropy(
        upsampled(logits, case.size, False),
        target,
        weight,
        ignore_index=IGNORED,
        label_smoothing=0.1,
    )
    torch.testing.assert_close(loss, expected)
    assert labels.dtype == torch.uint8
    torch.testing.assert_close(
        torch.autograd.grad(2.5 * loss, logits), torch.autograd.grad(2.5 * expected, logits)
    )


@pytest.mark.parametrize("programs", [0, 1, 255, 256, 700])
@pytest.mark.parametrize("wrong", [0.0, 1.0])
def test_mean_of_the_sums_of_programs(programs: int, wrong: float) -> None:
    sums = torch.rand(programs, 3, dtype=torch.float64)
    sums[:, 2] = 0
    sums[-1:, 2] = wrong
    loss, weight_sum = torch.full((2,), torch.nan).unbind()
    all_right = torch.tensor(-1, dtype=torch.int32)
    mean_loss_kernel[(1,)](sums, loss, weight_sum, all_right, programs, BLOCK_R=256)
    losses, weights, _ = sums.sum(0)
    torch.testing.assert_close(weight_sum, weights.float())
    torch.testing.assert_close(loss, (losses / weights).float() if programs else torch.zeros(()))
    assert all_right == (programs == 0 or wrong == 0)

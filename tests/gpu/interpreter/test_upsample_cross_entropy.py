"""The Triton kernels of upsample_cross_entropy in the interpreter, against float64 PyTorch."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from triton.runtime.interpreter import InterpreterBuilder

from pspfast import backends
from pspfast.kernels import upsample_cross_entropy
from pspfast.kernels.jit import upsample_tiles
from pspfast.kernels.upsample_cross_entropy import (
    upsample_cross_entropy_backward,
    upsample_cross_entropy_forward,
)

FLOAT, HALF, BFLOAT = torch.float32, torch.float16, torch.bfloat16
IGNORED = 255


@dataclass(frozen=True)
class Case:
    batch: int
    classes: int
    source: tuple[int, int]
    size: tuple[int, int]
    dtype: torch.dtype = FLOAT
    smoothing: float = 0.0
    weighted: bool = False


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

both_alignments = pytest.mark.parametrize("align_corners", [False, True], ids=["", "align_corners"])
both_formats = pytest.mark.parametrize(
    "channels_last", [False, True], ids=["contiguous", "channels_last"]
)


def upsampled(logits: Tensor, size: tuple[int, int], align_corners: bool = True) -> Tensor:
    return F.interpolate(logits, size, mode="bilinear", align_corners=align_corners)


def some_logits(case: Case, channels_last: bool = False, scale: float = 1.0) -> Tensor:
    x = (scale * torch.randn(case.batch, case.classes, *case.source)).to(case.dtype)
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if channels_last else x


def some_target(case: Case) -> Tensor:
    """Classes at random; about every fifth pixel is ignored, but the first is not."""
    shape = (case.batch, *case.size)
    target = torch.randint(case.classes, shape)
    target[torch.rand(shape) < 0.2] = IGNORED
    target[0, 0, 0] = 0
    return target


def assert_exact_to_rounding(got: Tensor, expected: Tensor) -> None:
    # The interpreter truncates to bfloat16.
    half_ulps = 2 if got.dtype == BFLOAT else 1
    rounding = 0.51 * half_ulps * torch.finfo(got.dtype).eps
    # Of one class the gradient is 0, a difference of numbers of about 1.
    scale = max(expected.abs().max().item(), 0.1)
    torch.testing.assert_close(
        got.double(), expected.detach(), rtol=max(rounding, 1e-6), atol=1e-6 * scale
    )


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """Addresses that kernels write."""
    addresses: list[np.ndarray] = []
    store = InterpreterBuilder.create_masked_store

    def noted_store(
        builder: InterpreterBuilder, pointers: Any, value: Any, mask: Any, *args: Any
    ) -> Any:
        addresses.append(pointers.data[mask.data])
        return store(builder, pointers, value, mask, *args)

    monkeypatch.setattr(InterpreterBuilder, "create_masked_store", noted_store)
    return addresses


def assert_written_once(written: list[np.ndarray], numbers: int) -> None:
    """Programs run one after the other here: what two of them write would be right in the end."""
    addresses = np.concatenate(written)
    assert len(addresses) == len(np.unique(addresses)) == numbers
    written.clear()


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
    assert_written_once(written, lse.numel() + labels.numel() + 3 * programs)
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

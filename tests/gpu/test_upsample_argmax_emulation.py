"""The CUDA kernel of upsample_argmax on the emulation, against float64 PyTorch."""

import ctypes
from collections.abc import Callable

import pytest
import torch
from emulated_upsample import (
    CASES,
    DTYPES,
    FORMATS,
    LABEL_TYPES,
    Case,
    as_stored,
    check_labels_of_nan,
    pointer,
    poisoned,
    problem_of,
    unpoisoned,
    upsampled,
)
from torch import Tensor


class UpsampleArgmax:
    """The op on the emulation."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library

    def labels(
        self, case: Case, logits: Tensor, label_type: torch.dtype, channels_last: bool
    ) -> Tensor:
        given = as_stored(logits, channels_last)
        shape = torch.Size((case.shape[0], *case.size))
        labels = poisoned(shape.numel(), label_type)
        error = self.library.upsample_argmax(
            ctypes.byref(problem_of(case, logits.dtype, channels_last)),
            pointer(given),
            LABEL_TYPES.index(label_type),
            pointer(labels),
        )
        assert error == 0
        return unpoisoned(labels, shape)


@pytest.fixture
def ops(emulated: Callable[[str], ctypes.CDLL]) -> UpsampleArgmax:
    return UpsampleArgmax(emulated("upsample_argmax"))


@FORMATS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_argmax(ops: UpsampleArgmax, case: Case, dtype: torch.dtype, channels_last: bool) -> None:
    torch.manual_seed(0)
    logits = torch.randn(case.shape).to(dtype)
    full = upsampled(case, logits.double())
    labels = ops.labels(case, logits, torch.int32, channels_last).long()
    largest = full.amax(1)
    chosen = full.gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(chosen, largest, rtol=0, atol=2e-6)
    # Where no other class is as large to rounding, there is no choice.
    is_clear = (full > largest[:, None] - 4e-6).sum(1) == 1
    assert is_clear.double().mean() > 0.99
    assert torch.equal(labels[is_clear], full.argmax(1)[is_clear])


@FORMATS
@pytest.mark.parametrize("label_type", LABEL_TYPES, ids=str)
def test_label_types(ops: UpsampleArgmax, label_type: torch.dtype, channels_last: bool) -> None:
    """Values that need the whole type, and nothing written behind the last."""
    classes = {torch.uint8: 256, torch.int32: 300, torch.int64: 300}[label_type]
    case = Case((2, classes, 3, 4), (17, 25))
    logits = torch.randn(case.shape)
    logits[0, classes - 1] = 10
    expected = ops.labels(case, logits, torch.int32, channels_last)
    assert (expected[0] == classes - 1).all()
    labels = ops.labels(case, logits, label_type, channels_last)
    assert torch.equal(labels.long(), expected.long())


@FORMATS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_first_of_equal_classes(
    ops: UpsampleArgmax, dtype: torch.dtype, channels_last: bool
) -> None:
    """Every class is there twice: the second time in another chunk of classes, or in the same."""
    case = Case((1, 600, 2, 5), (9, 33))
    few = torch.randn(1, 300, 2, 5).to(dtype)
    apart = ops.labels(case, few.repeat(1, 2, 1, 1), torch.int32, channels_last)
    side_by_side = ops.labels(case, few.repeat_interleave(2, 1), torch.int32, channels_last)
    assert apart.max() < 300
    assert torch.equal(side_by_side, 2 * apart)
    equal = ops.labels(case, torch.full(case.shape, -3e4).to(dtype), torch.int32, channels_last)
    assert torch.equal(equal, torch.zeros_like(equal))


@FORMATS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_first_class_that_is_nan(
    ops: UpsampleArgmax, case: Case, dtype: torch.dtype, channels_last: bool
) -> None:
    torch.manual_seed(0)
    logits = torch.randn(case.shape).to(dtype)
    check_labels_of_nan(lambda x: ops.labels(case, x, torch.int32, channels_last), case, logits)


@FORMATS
def test_repeats_bit_for_bit(ops: UpsampleArgmax, channels_last: bool) -> None:
    for case in CASES[:5]:
        logits = torch.randn(case.shape)
        first, second = (ops.labels(case, logits, torch.int64, channels_last) for _ in range(2))
        assert torch.equal(first, second)


@pytest.mark.parametrize("sanitizers", ["thread", "address,undefined"])
def test_sanitizers_are_silent(sanitized: Callable[..., str], sanitizers: str) -> None:
    assert sanitized("upsample_argmax_main", sanitizers) == ""

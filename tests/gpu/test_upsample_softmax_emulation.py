"""The CUDA kernel of upsample_softmax on the emulation, against float64 PyTorch."""

import ctypes
from collections.abc import Callable

import pytest
import torch
from emulated_upsample import (
    CASES,
    DTYPES,
    FORMATS,
    Case,
    as_stored,
    pointer,
    problem_of,
    upsampled,
)
from torch import Tensor


class Output(ctypes.Structure):
    _fields_ = [
        *[(name, ctypes.c_int64) for name in ("image", "class_", "row", "col", "flip", "add")],
        ("weight", ctypes.c_double),
    ]


class UpsampleSoftmax:
    """The op on the emulation."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library

    def softmax(
        self,
        case: Case,
        logits: Tensor,
        out: Tensor,
        channels_last: bool,
        *,
        flip: bool = False,
        add: bool = False,
        weight: float = 1.0,
    ) -> None:
        given = as_stored(logits, channels_last)
        error = self.library.upsample_softmax(
            ctypes.byref(problem_of(case, logits.dtype, channels_last)),
            ctypes.byref(Output(*out.stride(), flip, add, weight)),
            pointer(given),
            pointer(out),
        )
        assert error == 0


@pytest.fixture
def ops(emulated: Callable[[str], ctypes.CDLL]) -> UpsampleSoftmax:
    return UpsampleSoftmax(emulated("upsample_softmax"))


@FORMATS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_softmax(ops: UpsampleSoftmax, case: Case, dtype: torch.dtype, channels_last: bool) -> None:
    torch.manual_seed(0)
    logits = (3 * torch.randn(case.shape)).to(dtype)
    out = torch.full((*case.shape[:2], *case.size), torch.nan)
    ops.softmax(case, logits, out, channels_last)
    expected = upsampled(case, logits.double()).softmax(1)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-7)


@FORMATS
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1), (3, 1, 0, 2)], ids=str)
def test_softmax_goes_where_it_is_told(
    ops: UpsampleSoftmax, order: tuple[int, ...], add: bool, flip: bool, channels_last: bool
) -> None:
    """Into a window of a larger map of any memory order; around it nothing changes."""
    for case in (CASES[0], CASES[3], Case((2, 300, 2, 40), (3, 130))):
        logits = torch.randn(case.shape)
        n, k, height, width = (*case.shape[:2], *case.size)
        sizes = (n + 1, k + 2, height + 3, width + 4)
        whole = torch.randn([sizes[axis] for axis in order])
        whole = whole.permute([order.index(axis) for axis in range(4)])
        expected = whole.clone()
        probabilities = 0.7 * upsampled(case, logits.double()).softmax(1)
        if flip:
            probabilities = probabilities.flip(3)
        window = (slice(n), slice(1, k + 1), slice(2, height + 2), slice(3, width + 3))
        before = expected[window].double() if add else 0
        expected[window] = (before + probabilities).float()
        ops.softmax(case, logits, whole[window], channels_last, flip=flip, add=add, weight=0.7)
        torch.testing.assert_close(whole[window], expected[window], rtol=1e-5, atol=3e-7)
        whole[window] = expected[window] = 0
        assert torch.equal(whole, expected)


@pytest.mark.parametrize(("offset", "range_"), [(0, 200), (1e4, 1), (-1e4, 20), (0, 2e4)])
@pytest.mark.parametrize("shape", [(1, 9, 3, 4), (1, 600, 2, 5)], ids=str)
def test_large_logits_are_as_exact_as_eager(
    ops: UpsampleSoftmax, shape: tuple, offset: float, range_: float
) -> None:
    torch.manual_seed(0)
    case = Case(shape, (17, 25), align_corners=False)
    logits = offset + range_ * (torch.rand(shape) - 0.5)
    out = torch.full((*shape[:2], *case.size), torch.nan)
    ops.softmax(case, logits, out, channels_last=False)
    expected = upsampled(case, logits.double()).softmax(1)
    error, eager_error = (
        (x.double() - expected).norm() for x in (out, upsampled(case, logits).softmax(1))
    )
    assert error <= 2 * eager_error + 1e-6


@FORMATS
def test_repeats_bit_for_bit(ops: UpsampleSoftmax, channels_last: bool) -> None:
    for case in CASES[:5]:
        logits = torch.randn(case.shape)
        first, second = (torch.empty(*case.shape[:2], *case.size) for _ in range(2))
        for out in (first, second):
            ops.softmax(case, logits, out, channels_last)
        assert torch.equal(first, second)


@pytest.mark.parametrize("sanitizers", ["thread", "address,undefined"])
def test_sanitizers_are_silent(sanitized: Callable[..., str], sanitizers: str) -> None:
    assert sanitized("upsample_softmax_main", sanitizers) == ""

"""The CUDA kernels of upsample_argmax and upsample_softmax on the emulation, against float64
PyTorch."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
LABEL_TYPES = [torch.uint8, torch.int32, torch.int64]
FORMATS = pytest.mark.parametrize(
    "channels_last", [False, True], ids=["contiguous", "channels_last"]
)
# Labels behind the last, which stay as they are.
MARGIN = 8


@dataclass(frozen=True)
class Case:
    """Logits [N, K, h, w] and pixels [N, H, W]."""

    shape: tuple[int, int, int, int]
    size: tuple[int, int]
    align_corners: bool = True


CASES = [
    Case((2, 5, 3, 4), (17, 25)),
    Case((2, 5, 3, 4), (17, 25), align_corners=False),
    Case((1, 21, 5, 8), (33, 57)),
    Case((1, 4, 3, 2), (5, 4), align_corners=False),
    # More classes than a block takes at a time.
    Case((1, 600, 2, 5), (9, 33)),
    # Down-sampling along one axis or both.
    Case((1, 40, 2, 300), (9, 130)),
    # As many columns of logits for a tile of pixels as there may be.
    Case((1, 3, 2, 70), (3, 130)),
    Case((1, 5, 20, 70), (7, 19)),
    Case((1, 3, 40, 70), (3, 4), align_corners=False),
    # More rows and columns between logits than a block takes at a time.
    Case((1, 2, 2, 2), (37, 300)),
    Case((2, 3, 3, 3), (3, 3)),
    Case((2, 7, 1, 1), (19, 18)),
    Case((1, 300, 2, 1), (1, 1), align_corners=False),
    Case((1, 1, 3, 3), (17, 17), align_corners=False),
    Case((5, 2, 1, 2), (2, 3)),
]


class Problem(ctypes.Structure):
    _fields_ = [
        *[(name, ctypes.c_int64) for name in ("n", "k", "h", "w", "height", "width")],
        *[(name, ctypes.c_int64) for name in ("align_corners", "channels_last", "dtype")],
    ]


class Output(ctypes.Structure):
    _fields_ = [
        *[(name, ctypes.c_int64) for name in ("image", "class_", "row", "col", "flip", "add")],
        ("weight", ctypes.c_double),
    ]


def as_stored(logits: Tensor, channels_last: bool) -> Tensor:
    return (logits.movedim(1, -1) if channels_last else logits).contiguous()


def upsampled(case: Case, logits: Tensor) -> Tensor:
    return F.interpolate(logits, case.size, mode="bilinear", align_corners=case.align_corners)


class UpsampleArgmax:
    """Both ops on the emulation."""

    def __init__(self, library: Callable[[str], ctypes.CDLL]) -> None:
        self.library = library

    def problem(self, case: Case, dtype: torch.dtype, channels_last: bool) -> Problem:
        numbers = (case.align_corners, channels_last, DTYPES.index(dtype))
        return Problem(*case.shape, *case.size, *numbers)

    def labels(
        self, case: Case, logits: Tensor, label_type: torch.dtype, channels_last: bool
    ) -> Tensor:
        given = as_stored(logits, channels_last)
        shape = (case.shape[0], *case.size)
        labels = torch.full((torch.Size(shape).numel() + MARGIN,), 77, dtype=label_type)
        error = self.library("upsample_argmax").upsample_argmax(
            ctypes.byref(self.problem(case, logits.dtype, channels_last)),
            ctypes.c_void_p(given.data_ptr()),
            LABEL_TYPES.index(label_type),
            ctypes.c_void_p(labels.data_ptr()),
        )
        assert error == 0
        assert (labels[-MARGIN:] == 77).all()
        return labels[:-MARGIN].view(shape)

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
        error = self.library("upsample_softmax").upsample_softmax(
            ctypes.byref(self.problem(case, logits.dtype, channels_last)),
            ctypes.byref(Output(*out.stride(), flip, add, weight)),
            ctypes.c_void_p(given.data_ptr()),
            ctypes.c_void_p(out.data_ptr()),
        )
        assert error == 0


@pytest.fixture
def ops(emulated: Callable[[str], ctypes.CDLL]) -> UpsampleArgmax:
    return UpsampleArgmax(emulated)


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
def test_softmax(ops: UpsampleArgmax, case: Case, dtype: torch.dtype, channels_last: bool) -> None:
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
    ops: UpsampleArgmax, order: tuple[int, ...], add: bool, flip: bool, channels_last: bool
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
    ops: UpsampleArgmax, shape: tuple, offset: float, range_: float
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
def test_repeats_bit_for_bit(ops: UpsampleArgmax, channels_last: bool) -> None:
    for case in CASES[:5]:
        logits = torch.randn(case.shape)
        first, second = (torch.empty(*case.shape[:2], *case.size) for _ in range(2))
        for out in (first, second):
            ops.softmax(case, logits, out, channels_last)
        assert torch.equal(first, second)
        first, second = (ops.labels(case, logits, torch.int64, channels_last) for _ in range(2))
        assert torch.equal(first, second)


@pytest.mark.parametrize("sanitizers", ["thread", "address,undefined"])
def test_sanitizers_are_silent(sanitized: Callable[..., str], sanitizers: str) -> None:
    assert sanitized("upsample_argmax_main", sanitizers) == ""

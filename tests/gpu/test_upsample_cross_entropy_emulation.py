"""The CUDA kernels of upsample_cross_entropy on the emulation, against float64 PyTorch."""

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
# Elements behind every output, which stay as they are.
MARGIN = 8
IGNORED = 255


@dataclass(frozen=True)
class Case:
    """Logits [N, K, h, w] and pixels [N, H, W]."""

    shape: tuple[int, int, int, int]
    size: tuple[int, int]
    align_corners: bool = True
    smoothing: float = 0.0
    weighted: bool = False


CASES = [
    Case((2, 5, 3, 4), (17, 25)),
    Case((2, 5, 3, 4), (17, 25), align_corners=False, smoothing=0.1, weighted=True),
    Case((1, 21, 5, 8), (33, 57), weighted=True),
    Case((1, 4, 3, 2), (5, 4), align_corners=False, smoothing=0.1),
    # More classes than a block of the backward takes, and than the forward takes at a time.
    Case((1, 70, 2, 3), (9, 7), align_corners=False, smoothing=0.2),
    Case((1, 600, 2, 5), (9, 33), smoothing=0.1, weighted=True),
    # Down-sampling along one axis or both.
    Case((1, 40, 2, 300), (9, 130), weighted=True),
    # As many columns of logits for a tile of pixels as there may be.
    Case((1, 3, 2, 70), (3, 130)),
    Case((1, 5, 20, 70), (7, 19)),
    Case((1, 3, 40, 70), (3, 4), align_corners=False, smoothing=1.0),
    Case((1, 2, 200, 3), (1, 5), align_corners=False),
    # More columns of logits than a block of the backward takes.
    Case((1, 3, 2, 33), (9, 257), align_corners=False),
    # More rows and columns between logits than a block takes at a time.
    Case((1, 2, 2, 2), (37, 300)),
    Case((1, 2, 2, 1), (40, 150), align_corners=False, smoothing=0.3),
    Case((2, 3, 3, 3), (3, 3)),
    Case((2, 7, 1, 1), (19, 18)),
    Case((1, 300, 2, 1), (1, 1), align_corners=False, smoothing=0.3, weighted=True),
    Case((1, 1, 3, 3), (17, 17), align_corners=False),
    Case((5, 2, 1, 2), (2, 3)),
]


class Problem(ctypes.Structure):
    _fields_ = [
        *[(name, ctypes.c_int64) for name in ("n", "k", "h", "w", "height", "width")],
        *[(name, ctypes.c_int64) for name in ("align_corners", "channels_last", "dtype")],
        ("ignore_index", ctypes.c_int64),
        ("smoothing", ctypes.c_double),
    ]


def poisoned(size: int, dtype: torch.dtype) -> Tensor:
    """`size` elements and a margin, of NaN or of 77."""
    return torch.full((size + MARGIN,), torch.nan if dtype.is_floating_point else 77, dtype=dtype)


def unpoisoned(buffer: Tensor, shape: tuple[int, ...]) -> Tensor:
    written, margin = buffer[:-MARGIN], buffer[-MARGIN:]
    assert torch.equal(margin, poisoned(0, buffer.dtype)) or margin.isnan().all()
    return written.view(shape)


@dataclass
class Loss:
    loss: float
    weight: float
    invalid: float
    lse: Tensor
    labels: Tensor | None


class UpsampleLoss:
    """Both directions on the emulation."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        for function in (
            library.upsample_cross_entropy_parts,
            library.upsample_cross_entropy_workspace,
        ):
            function.restype = ctypes.c_int64

    def problem(self, case: Case, dtype: torch.dtype, channels_last: bool) -> Problem:
        return Problem(
            *case.shape,
            *case.size,
            case.align_corners,
            channels_last,
            DTYPES.index(dtype),
            IGNORED,
            case.smoothing,
        )

    def forward(
        self,
        case: Case,
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None,
        channels_last: bool,
        label_type: torch.dtype | None = None,
    ) -> Loss:
        problem = self.problem(case, logits.dtype, channels_last)
        given = as_stored(logits, channels_last)
        pixels = target.numel()
        lse = poisoned(pixels, torch.float32)
        parts = self.library.upsample_cross_entropy_parts(ctypes.byref(problem))
        sums = poisoned(3 * parts, torch.float64)
        labels = poisoned(pixels, label_type) if label_type else None
        error = self.library.upsample_cross_entropy(
            ctypes.byref(problem),
            *map(pointer, (given, target, weight, lse)),
            LABEL_TYPES.index(label_type) if label_type else 0,
            *map(pointer, (labels, sums)),
        )
        assert error == 0
        loss, weight_sum, invalid = unpoisoned(sums, (parts, 3)).sum(0).tolist()
        lse = unpoisoned(lse, target.shape)
        if labels is not None:
            labels = unpoisoned(labels, target.shape)
        return Loss(loss, weight_sum, invalid, lse, labels)

    def backward(
        self,
        case: Case,
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None,
        lse: Tensor,
        scale: float,
        channels_last: bool,
    ) -> Tensor:
        problem = self.problem(case, logits.dtype, channels_last)
        given, factor = as_stored(logits, channels_last), torch.tensor(scale)
        grad = poisoned(logits.numel(), logits.dtype)
        size = self.library.upsample_cross_entropy_workspace(ctypes.byref(problem))
        assert size % 4 == 0
        workspace = poisoned(size // 4, torch.float32)
        error = self.library.upsample_cross_entropy_backward(
            ctypes.byref(problem),
            *map(pointer, (given, target, weight, lse, factor)),
            *map(pointer, (grad, workspace)),
        )
        assert error == 0
        unpoisoned(workspace, (-1,))
        n, k, h, w = case.shape
        if not channels_last:
            return unpoisoned(grad, case.shape)
        return unpoisoned(grad, (n, h, w, k)).movedim(-1, 1)


def as_stored(logits: Tensor, channels_last: bool) -> Tensor:
    return (logits.movedim(1, -1) if channels_last else logits).contiguous()


def pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


@pytest.fixture
def upsample_cross_entropy(emulated: Callable[[str], ctypes.CDLL]) -> UpsampleLoss:
    return UpsampleLoss(emulated("upsample_cross_entropy"))


def make_target(case: Case) -> Tensor:
    """Classes in some order; every fifth pixel is ignored."""
    shape = (case.shape[0], *case.size)
    pixel = torch.arange(shape[0] * shape[1] * shape[2]).reshape(shape)
    # No label is the ignored one.
    classes = min(case.shape[1], IGNORED)
    return torch.where(pixel % 5 == 4, IGNORED, pixel * 7 // 3 % classes)


def make_weight(case: Case) -> Tensor | None:
    return torch.linspace(0.5, 2, case.shape[1]) if case.weighted else None


def upsampled(case: Case, logits: Tensor) -> Tensor:
    return F.interpolate(logits, case.size, mode="bilinear", align_corners=case.align_corners)


def reference(case: Case, logits: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    return F.cross_entropy(
        upsampled(case, logits),
        target,
        None if weight is None else weight.to(logits.dtype),
        ignore_index=IGNORED,
        reduction="sum",
        label_smoothing=case.smoothing,
    )


def assert_largest(labels: Tensor, full: Tensor) -> None:
    """Labels are the largest logits' in float64, to rounding where these are close."""
    chosen = full.gather(1, labels[:, None].long())[:, 0]
    torch.testing.assert_close(chosen, full.amax(1), rtol=0, atol=2e-6)
    first, second = (
        full.topk(min(2, full.shape[1]), dim=1).values.unbind(1)[:2]
        if (full.shape[1] > 1)
        else (full[:, 0], full[:, 0] - 1)
    )
    clear = first - second > 2e-6
    assert torch.equal(labels.long()[clear], full.argmax(1)[clear])


@FORMATS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward_and_backward(
    upsample_cross_entropy: UpsampleLoss, case: Case, dtype: torch.dtype, channels_last: bool
) -> None:
    torch.manual_seed(0)
    logits = (3 * torch.randn(case.shape)).to(dtype)
    target, weight = make_target(case), make_weight(case)
    exact = logits.double().requires_grad_()
    expected = reference(case, exact, target, weight)
    full = upsampled(case, exact.detach())
    got = upsample_cross_entropy.forward(case, logits, target, weight, channels_last)
    torch.testing.assert_close(got.loss, expected.item(), rtol=1e-6, atol=1e-6)
    counted = target != IGNORED
    of_target = torch.ones(case.shape[1]) if weight is None else weight
    assert got.weight == pytest.approx(of_target[target[counted]].sum().item(), rel=1e-6)
    assert got.invalid == 0
    torch.testing.assert_close(got.lse.double(), full.logsumexp(1), rtol=1e-6, atol=1e-6)

    (expected_grad,) = torch.autograd.grad(0.3 * expected, exact)
    grad = upsample_cross_entropy.backward(
        case, logits, target, weight, got.lse, 0.3, channels_last
    )
    # A weight next to 1 leaves its neighbour a few bits: an error of the pixel's gradient, not of
    # what the neighbour gets of it. Of float16 the smallest numbers are 6e-8 apart.
    torch.testing.assert_close(
        grad.double(), expected_grad, rtol=max(0.51 * torch.finfo(dtype).eps, 1e-5), atol=4e-7
    )


@FORMATS
@pytest.mark.parametrize("label_type", LABEL_TYPES, ids=str)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_labels(
    upsample_cross_entropy: UpsampleLoss,
    smoothing: float,
    label_type: torch.dtype,
    channels_last: bool,
) -> None:
    for case in (
        Case((2, 5, 3, 4), (17, 25), smoothing=smoothing),
        Case((1, 250, 4, 40), (6, 129), align_corners=False, smoothing=smoothing),
    ):
        logits, target = torch.randn(case.shape), make_target(case)
        got = upsample_cross_entropy.forward(case, logits, target, None, channels_last, label_type)
        without = upsample_cross_entropy.forward(case, logits, target, None, channels_last)
        assert_largest(got.labels, upsampled(case, logits.double()))
        assert (got.loss, got.weight) == (without.loss, without.weight)
        assert torch.equal(got.lse, without.lse)


@FORMATS
def test_first_of_equal_classes(upsample_cross_entropy: UpsampleLoss, channels_last: bool) -> None:
    """Every class is there twice: the second time in another chunk of classes, or in the same."""
    few = torch.randn(1, 300, 2, 5)
    case = Case((1, 600, 2, 5), (9, 33))
    labels = [
        upsample_cross_entropy.forward(
            case, logits.contiguous(), make_target(case), None, channels_last, torch.int32
        ).labels
        for logits in (few.repeat(1, 2, 1, 1), few.repeat_interleave(2, 1))
    ]
    assert labels[0].max() < 300
    assert torch.equal(labels[1], 2 * labels[0])


@FORMATS
def test_wrong_labels_are_counted_and_ignored(
    upsample_cross_entropy: UpsampleLoss, channels_last: bool
) -> None:
    case = Case((2, 3, 3, 4), (17, 25), smoothing=0.1)
    logits, ignored = torch.randn(case.shape), make_target(case)
    wrong = ignored.clone()
    wrong[0, :4, 1] = torch.tensor([-1, 3, 2**40, -(2**63)])
    wrong[1, 16, 24] = 254
    ignored[wrong != ignored] = IGNORED
    expected = upsample_cross_entropy.forward(case, logits, ignored, None, channels_last)
    got = upsample_cross_entropy.forward(case, logits, wrong, None, channels_last)
    assert (got.loss, got.weight, got.invalid) == (expected.loss, expected.weight, 5)
    assert torch.equal(got.lse, expected.lse)
    grads = [
        upsample_cross_entropy.backward(case, logits, target, None, got.lse, 1.0, channels_last)
        for target in (ignored, wrong)
    ]
    assert torch.equal(*grads)


@FORMATS
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_nothing_counts(
    upsample_cross_entropy: UpsampleLoss, smoothing: float, channels_last: bool
) -> None:
    case = Case((2, 3, 3, 4), (17, 25), smoothing=smoothing)
    logits, target = torch.randn(case.shape), torch.full((2, 17, 25), IGNORED)
    got = upsample_cross_entropy.forward(case, logits, target, None, channels_last)
    assert (got.loss, got.weight, got.invalid) == (0, 0, 0)
    grad = upsample_cross_entropy.backward(case, logits, target, None, got.lse, 1.0, channels_last)
    assert torch.equal(grad, torch.zeros_like(grad))


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
    case = Case(shape, (17, 25), align_corners=False, smoothing=smoothing)
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
    case = Case((1, classes, 2, 5), (9, 33), smoothing=smoothing)
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
    case = Case((2, 3, 4, 4), (25, 25))
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
def test_repeats_bit_for_bit(upsample_cross_entropy: UpsampleLoss, channels_last: bool) -> None:
    for case in CASES[:5]:
        logits, target, weight = torch.randn(case.shape), make_target(case), make_weight(case)
        results = []
        for _ in range(2):
            loss = upsample_cross_entropy.forward(
                case, logits, target, weight, channels_last, torch.int64
            )
            grad = upsample_cross_entropy.backward(
                case, logits, target, weight, loss.lse, 1.0, channels_last
            )
            results.append((torch.tensor([loss.loss, loss.weight]), loss.lse, loss.labels, grad))
        assert all(map(torch.equal, *results))


@pytest.mark.parametrize("align_corners", [False, True])
def test_first_position(upsample_cross_entropy: UpsampleLoss, align_corners: bool) -> None:
    def low(position: int, size: int, sources: int) -> int:
        if align_corners:
            return position * (sources - 1) // max(size - 1, 1)
        return max((2 * position + 1) * sources - size, 0) // (2 * size)

    def first(source: int, size: int, sources: int) -> int:
        return upsample_cross_entropy.library.first_position(source, size, sources, align_corners)

    for size in range(1, 30):
        for sources in range(1, 30):
            lows = [low(position, size, sources) for position in range(size)]
            for source in range(sources + 1):
                expected = next((i for i, x in enumerate(lows) if x >= source), size)
                assert first(source, size, sources) == expected, (size, sources, source)
    # As large as interpolation_tap's products allow.
    for size, sources in ((1 << 23, 127), (127, 1 << 23), (32767, 32767), (4095, 262143)):
        for source in (1, 2, sources // 2, sources - 1):
            position = first(source, size, sources)
            assert low(position - 1, size, sources) < source or position == 0
            assert position == size or low(position, size, sources) >= source


@pytest.mark.parametrize("sanitizers", ["thread", "address,undefined"])
def test_sanitizers_are_silent(sanitized: Callable[..., str], sanitizers: str) -> None:
    assert sanitized("upsample_cross_entropy_main", sanitizers) == ""

"""The CUDA kernels of upsample_cross_entropy on the emulation, against float64 PyTorch."""

import ctypes
from collections.abc import Callable

import pytest
import torch
from emulated_cross_entropy import (
    CASES,
    IGNORED,
    LossCase,
    UpsampleLoss,
    make_target,
    make_weight,
    reference,
)
from emulated_upsample import DTYPES, FORMATS, LABEL_TYPES, upsampled
from torch import Tensor


@pytest.fixture
def upsample_cross_entropy(emulated: Callable[[str], ctypes.CDLL]) -> UpsampleLoss:
    return UpsampleLoss(emulated("upsample_cross_entropy"))


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
    upsample_cross_entropy: UpsampleLoss, case: LossCase, dtype: torch.dtype, channels_last: bool
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
        LossCase((2, 5, 3, 4), (17, 25), smoothing=smoothing),
        LossCase((1, 250, 4, 40), (6, 129), align_corners=False, smoothing=smoothing),
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
    case = LossCase((1, 600, 2, 5), (9, 33))
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
    case = LossCase((2, 3, 3, 4), (17, 25), smoothing=0.1)
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
    case = LossCase((2, 3, 3, 4), (17, 25), smoothing=smoothing)
    logits, target = torch.randn(case.shape), torch.full((2, 17, 25), IGNORED)
    got = upsample_cross_entropy.forward(case, logits, target, None, channels_last)
    assert (got.loss, got.weight, got.invalid) == (0, 0, 0)
    grad = upsample_cross_entropy.backward(case, logits, target, None, got.lse, 1.0, channels_last)
    assert torch.equal(grad, torch.zeros_like(grad))


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

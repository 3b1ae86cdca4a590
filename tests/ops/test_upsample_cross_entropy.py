from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from op_tester import OpTester, assert_close, exact_dtype, moved, with_reference
from torch import Tensor

import pspfast
from pspfast.ops import upsample_cross_entropy


def upsampled(logits: Tensor, size: tuple[int, ...], align_corners: bool = True) -> Tensor:
    return F.interpolate(logits, size, mode="bilinear", align_corners=align_corners)


def some_target(batch: int, classes: int, size: tuple[int, int]) -> Tensor:
    """Classes in some order; every fifth pixel is ignored."""
    pixel = torch.arange(batch * size[0] * size[1]).reshape(batch, *size)
    return torch.where(pixel % 5 == 4, 255, pixel * 7 // 3 % classes)


class TestUpsampleLoss(OpTester):
    """Cases are [logits], (size, align_corners, label_smoothing, weighted)."""

    cases: ClassVar = [
        ([(2, 3, 4, 5)], ((9, 7), True, 0.0, False)),
        ([(1, 4, 3, 2)], ((5, 4), False, 0.1, True)),
        ([(2, 21, 9, 8)], ((65, 57), True, 0.0, True)),
        ([(1, 150, 7, 9)], ((49, 65), False, 0.2, False)),
        ([(1, 33, 8, 3)], ((8, 3), True, 0.0, False)),
        ([(1, 5, 20, 70)], ((7, 19), True, 0.0, True)),
        ([(1, 2, 20, 70)], ((3, 4), False, 1.0, False)),
        ([(2, 7, 1, 1)], ((33, 18), True, 0.0, False)),
        ([(1, 300, 2, 1)], ((1, 1), False, 0.3, True)),
        ([(1, 1, 3, 3)], ((17, 17), True, 0.0, False)),
    ]
    overloads: ClassVar = [
        (
            torch.ops.pspfast.upsample_cross_entropy,
            [(2, 3, 4, 5)],
            (some_target(2, 3, (9, 7)), None, 255, True, 0.1, labels),
        )
        for labels in (False, True)
    ]

    def op(self, logits: Tensor, *args: Any) -> Tensor:
        size, align_corners, label_smoothing, weighted = args
        classes = logits.shape[1]
        return upsample_cross_entropy(
            logits,
            some_target(logits.shape[0], classes, size).to(logits.device),
            align_corners=align_corners,
            label_smoothing=label_smoothing,
            weight=torch.linspace(0.5, 2, classes).to(logits) if weighted else None,
        )

    def reference(self, logits: Tensor, *args: Any) -> Tensor:
        size, align_corners, label_smoothing, weighted = args
        classes = logits.shape[1]
        loss = F.cross_entropy(
            upsampled(logits, size, align_corners),
            some_target(logits.shape[0], classes, size).to(logits.device),
            torch.linspace(0.5, 2, classes).to(logits) if weighted else None,
            ignore_index=255,
            label_smoothing=label_smoothing,
        )
        return loss if logits.dtype == torch.float64 else loss.float()


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    source=st.tuples(*[st.integers(1, 20)] * 2),
    size=st.tuples(*[st.integers(1, 60)] * 2),
    classes=st.integers(1, 40),
    align_corners=st.booleans(),
    label_smoothing=st.sampled_from([0.0, 0.1]),
    channels_last=st.booleans(),
)
def test_any_size(
    device: torch.device,
    source: tuple[int, int],
    size: tuple[int, int],
    classes: int,
    align_corners: bool,
    label_smoothing: float,
    channels_last: bool,
) -> None:
    logits = torch.randn(2, classes, *source).to(device, exact_dtype(device))
    if channels_last:
        logits = logits.contiguous(memory_format=torch.channels_last)
    logits.requires_grad_()
    target = some_target(2, classes, size).to(device)
    ours, labels = upsample_cross_entropy(
        logits,
        target,
        align_corners=align_corners,
        label_smoothing=label_smoothing,
        return_argmax=True,
    )
    full = upsampled(logits, size, align_corners)
    expected = F.cross_entropy(full, target, ignore_index=255, label_smoothing=label_smoothing)
    assert_close(ours, expected)
    assert_close(
        torch.autograd.grad(2.5 * ours, logits), torch.autograd.grad(2.5 * expected, logits)
    )
    # Equal to rounding, where not equal.
    chosen = full.gather(1, labels[:, None].long())[:, 0]
    rounding = 1e-12 if logits.dtype == torch.float64 else 1e-5
    torch.testing.assert_close(chosen, full.amax(1), rtol=0, atol=rounding)


@with_reference
@pytest.mark.parametrize("weighted", [False, True])
def test_nothing_counts(weighted: bool, device: torch.device) -> None:
    logits = torch.randn(2, 3, 4, 5).to(device).requires_grad_()
    weight = torch.ones(3, device=device) if weighted else None
    target = torch.full((2, 9, 7), 255, device=device)
    loss = upsample_cross_entropy(logits, target, weight=weight)
    loss.backward()
    assert loss == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@with_reference
def test_no_image(device: torch.device) -> None:
    logits = torch.zeros(0, 3, 4, 5, device=device, requires_grad=True)
    target = torch.zeros(0, 9, 7, dtype=torch.long, device=device)
    loss, labels = upsample_cross_entropy(logits, target, return_argmax=True)
    loss.backward()
    assert loss == 0
    assert labels.shape == (0, 9, 7)
    assert logits.grad.shape == logits.shape


INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_any_integers(dtype: torch.dtype, device: torch.device) -> None:
    logits, target = torch.randn(2, 3, 4, 5).to(device), some_target(2, 3, (9, 7)).to(device)
    ignore_index = 255
    if dtype == torch.int8:
        target[target == 255] = ignore_index = -1
    expected = F.cross_entropy(upsampled(logits, (9, 7)), target, ignore_index=ignore_index)
    got = upsample_cross_entropy(logits, target.to(dtype), ignore_index=ignore_index)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("width", [7, 33])
@pytest.mark.parametrize("ignore_index", [1, -1, -2, -100, 2**40])
def test_ignore_index(ignore_index: int, width: int, device: torch.device) -> None:
    """A class too, and numbers that a narrower integer would take for another."""
    logits = torch.randn(2, 3, 4, 5).to(device).requires_grad_()
    target = some_target(2, 3, (9, width)).to(device)
    target[target == 255] = ignore_index
    expected = F.cross_entropy(upsampled(logits, (9, width)), target, ignore_index=ignore_index)
    got = upsample_cross_entropy(logits, target, ignore_index=ignore_index)
    torch.testing.assert_close(got, expected)
    ours, theirs = (torch.autograd.grad(loss, logits)[0] for loss in (got, expected))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("scale", [1e2, 1e4, 1e30])
def test_large_logits(scale: float, device: torch.device) -> None:
    logits = (scale * torch.randn(1, 21, 5, 5)).to(device).requires_grad_()
    target = some_target(1, 21, (33, 33)).to(device)
    exact = logits.detach().double().requires_grad_()
    expected = F.cross_entropy(upsampled(exact, (33, 33)), target, ignore_index=255)
    loss = upsample_cross_entropy(logits, target)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("classes", [3, 150])
def test_sum_of_exponentials_of_each_pixel(
    classes: int, implementation: str, device: torch.device
) -> None:
    """A mean over pixels would hide errors of either sign."""
    logits = torch.randn(2, classes, 9, 8) * torch.tensor([0.01, 1]).reshape(2, 1, 1, 1)
    target = some_target(2, classes, (65, 57))
    op = OpTester.op_of(torch.ops.pspfast.upsample_cross_entropy, implementation)
    lse = op(logits.to(device), target.to(device), None, 255, True, 0.0, False)[1].cpu()
    expected = upsampled(logits.double(), (65, 57)).logsumexp(1)
    torch.testing.assert_close(lse.double(), expected, rtol=2e-7, atol=4e-7)


def test_logits_that_differ_much_between_neighbours(device: torch.device) -> None:
    """A shift by the larger of two neighbours' maxima would leave nothing between them."""
    logits = torch.full((1, 3, 1, 2), -100.0, device=device)
    logits[0, 0, 0, 0] = logits[0, 1, 0, 1] = 100.0
    target = torch.zeros(1, 1, 9, dtype=torch.long, device=device)
    expected = F.cross_entropy(upsampled(logits, (1, 9)), target)
    torch.testing.assert_close(upsample_cross_entropy(logits, target), expected)


def test_nan_reaches_the_loss(device: torch.device) -> None:
    logits = torch.randn(1, 3, 4, 4).to(device)
    logits[0, 2, 1, 1] = torch.nan
    target = torch.zeros(1, 9, 9, dtype=torch.long, device=device)
    assert upsample_cross_entropy(logits, target).isnan()


@pytest.mark.parametrize(("classes", "dtype"), [(256, torch.uint8), (257, torch.int32)])
@with_reference
def test_labels(classes: int, dtype: torch.dtype, device: torch.device) -> None:
    logits, target = torch.randn(1, classes, 4, 5).to(device), some_target(1, 200, (25, 33))
    _, labels = upsample_cross_entropy(logits, target.to(device), return_argmax=True)
    assert labels.dtype == dtype
    assert torch.equal(labels.long(), upsampled(logits, (25, 33)).argmax(1))


def test_keeps_the_logits_and_a_number_a_pixel(device: torch.device) -> None:
    logits = torch.randn(2, 40, 9, 9).to(device).requires_grad_()
    target = some_target(2, 40, (65, 65)).to(device, torch.uint8)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        upsample_cross_entropy(logits, target)
    sizes = sorted(t.nbytes for t in kept)
    assert sizes[-2:] == sorted([logits.nbytes, 4 * target.numel()])
    assert sum(sizes[:-2]) <= target.nbytes + 16


def test_allocates_nothing_of_the_size_of_upsampled_logits() -> None:
    logits = torch.randn(2, 40, 9, 9, requires_grad=True)
    target = some_target(2, 40, (65, 65))

    def largest_allocation() -> int:
        with torch.profiler.profile(profile_memory=True) as profiler:
            upsample_cross_entropy(logits, target, return_argmax=True)[0].backward()
        events = profiler.profiler.kineto_results.events()
        return max(event.nbytes() for event in events if event.name() == "[memory]")

    # A class's share of them is a plane of float.
    plane = 4 * target.numel()
    assert largest_allocation() <= 2 * plane
    with pspfast.backend("reference"):
        assert largest_allocation() >= 40 * plane


LOGITS, TARGET = torch.zeros(2, 3, 4, 4), torch.zeros(2, 9, 9, dtype=torch.long)
WRONG_LABEL = TARGET.index_put((torch.tensor(1), torch.tensor(2)), torch.tensor(7))
BAD_INPUTS = [
    ({"logits": LOGITS[0]}, ValueError, "(logits|target): expected"),
    ({"logits": LOGITS.long()}, TypeError, "logits: expected float32"),
    ({"target": TARGET[:1]}, ValueError, r"target: expected \[N, H, W\] .* got shape \[1, 9, 9\]"),
    ({"target": TARGET.float()}, TypeError, "target: expected integers, got"),
    ({"target": TARGET.bool()}, TypeError, "target: expected integers, got"),
    ({"weight": torch.ones(4)}, ValueError, r"weight: expected \[K\] with K = 3, got shape \[4\]"),
    ({"label_smoothing": 1.5}, ValueError, "label_smoothing: expected 0 to 1, got 1.5"),
    ({"target": WRONG_LABEL}, ValueError, r"target: expected labels 0 to 2 or 255 .*got .*7"),
    ({"target": WRONG_LABEL - 1}, ValueError, r"target: expected labels 0 to 2 or 255 .*got .*-1"),
    ({"target": TARGET + 2**32}, ValueError, r"target: expected labels 0 to 2 or 255 .*got"),
]


@with_reference
@pytest.mark.parametrize("bad", BAD_INPUTS, ids=lambda bad: bad[2][:20])
def test_errors(device: torch.device, bad: tuple[Any, ...]) -> None:
    changed, error, message = bad
    if message.startswith("target: expected labels") and device.type != "cpu":
        pytest.skip("a GPU reports a wrong label as an assertion that ends all of its later work")
    arguments = moved({"logits": LOGITS, "target": TARGET} | changed, device)
    with pytest.raises(error, match=f"^upsample_cross_entropy: {message}"):
        upsample_cross_entropy(arguments.pop("logits"), arguments.pop("target"), **arguments)


def test_backward_errors() -> None:
    backward = torch.ops.pspfast.upsample_cross_entropy_backward
    scale, lse = torch.tensor(1.0), torch.zeros(2, 9, 9)
    with pytest.raises(ValueError, match=r"lse: expected shape \[2, 9, 9\], got \[2, 9, 8\]"):
        backward(scale, LOGITS, TARGET, None, lse[..., 1:], 255, True, 0.0)
    with pytest.raises(ValueError, match="lse: expected Float, got Double"):
        backward(scale, LOGITS, TARGET, None, lse.double(), 255, True, 0.0)
    with pytest.raises(ValueError, match=r"scale: expected one number, got shape \[2\]"):
        backward(torch.ones(2), LOGITS, TARGET, None, lse, 255, True, 0.0)


def test_backward_contract(implementation: str, device: torch.device) -> None:
    """The one op without a gradient of its own: double backward goes through plain PyTorch."""
    tensors = (torch.tensor(1.0), torch.randn(2, 3, 4, 4), TARGET, torch.randn(2, 9, 9))
    scale, logits, target, lse = (tensor.to(device) for tensor in tensors)
    op = OpTester.op_of(torch.ops.pspfast.upsample_cross_entropy_backward, implementation)
    torch.library.opcheck(op, (scale, logits, target, None, lse, 255, True, 0.0))

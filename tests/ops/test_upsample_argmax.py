from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from instruction_sets import assert_passes_at, at_lower_isas
from op_tester import DTYPES, LAYOUTS, OpTester, exact_dtype, skip_float64_on_a_gpu, with_reference
from torch import Tensor

from pspfast.ops import upsample_argmax, upsample_softmax

# Logits [N, K, h, w] and the size of the image.
CASES = [
    ((2, 3, 4, 5), (9, 7)),
    ((2, 21, 9, 8), (65, 57)),
    ((1, 150, 7, 9), (49, 65)),
    ((1, 33, 8, 3), (8, 3)),
    ((1, 5, 20, 70), (7, 19)),
    ((1, 4, 20, 70), (3, 4)),
    ((2, 7, 1, 1), (33, 18)),
    ((1, 300, 2, 1), (1, 1)),
    ((1, 1, 3, 3), (17, 17)),
]


def upsampled(logits: Tensor, size: tuple[int, int], align_corners: bool = True) -> Tensor:
    return F.interpolate(logits, size, mode="bilinear", align_corners=align_corners)


def sums_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def assert_largest(labels: Tensor, full: Tensor, tolerance: float = 1e-6) -> None:
    """Labels name the largest logits, to rounding."""
    chosen = full.gather(1, labels[:, None].long())[:, 0]
    bound = tolerance * full.abs().max().item()
    torch.testing.assert_close(chosen, full.amax(1), rtol=0, atol=bound)


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_argmax(dtype: torch.dtype, layout: Any, align_corners: bool, device: torch.device) -> None:
    skip_float64_on_a_gpu(dtype, device)
    for shape, size in CASES:
        logits = layout(torch.randn(shape).to(device, dtype))
        labels = upsample_argmax(logits, size, align_corners=align_corners)
        assert labels.shape == (shape[0], *size)
        assert_largest(labels, upsampled(logits.double(), size, align_corners))


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_softmax(
    dtype: torch.dtype, layout: Any, align_corners: bool, device: torch.device
) -> None:
    skip_float64_on_a_gpu(dtype, device)
    for shape, size in CASES:
        logits = layout((4 * torch.randn(shape)).to(device, dtype))
        got = upsample_softmax(logits, size, align_corners=align_corners, weight=0.5)
        expected = 0.5 * upsampled(logits.double(), size, align_corners).softmax(1)
        assert got.dtype == sums_dtype(dtype)
        torch.testing.assert_close(got.double(), expected, rtol=2e-6, atol=1e-6)


@at_lower_isas
def test_lower_isas(isa: str) -> None:
    tests = [f"{__file__}::{name}" for name in ("test_argmax", "test_softmax")]
    assert_passes_at(isa, "-k", "cpu", *tests)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    source=st.tuples(*[st.integers(1, 20)] * 2),
    size=st.tuples(*[st.integers(1, 60)] * 2),
    classes=st.integers(1, 40),
    align_corners=st.booleans(),
    flip=st.booleans(),
    channels_last=st.booleans(),
)
def test_any_size(
    device: torch.device,
    source: tuple[int, int],
    size: tuple[int, int],
    classes: int,
    align_corners: bool,
    flip: bool,
    channels_last: bool,
) -> None:
    logits = torch.randn(2, classes, *source).to(device, exact_dtype(device))
    if channels_last:
        logits = logits.contiguous(memory_format=torch.channels_last)
    full = upsampled(logits.double(), size, align_corners)
    tolerance = 1e-12 if logits.dtype == torch.float64 else 1e-6
    labels = upsample_argmax(logits, size, align_corners=align_corners)
    assert_largest(labels, full, tolerance)
    got = upsample_softmax(logits, size, align_corners=align_corners, flip=flip).double()
    expected = full.softmax(1).flip(3) if flip else full.softmax(1)
    torch.testing.assert_close(got, expected, rtol=2 * tolerance, atol=tolerance)


@with_reference
def test_of_equal_logits_the_first_class(device: torch.device) -> None:
    logits = torch.zeros(1, 5, 3, 4, device=device)
    assert (upsample_argmax(logits, (17, 25)) == 0).all()
    logits[:, 2:4] = 1.5
    assert (upsample_argmax(logits, (17, 25)) == 2).all()


@with_reference
def test_label_dtypes(device: torch.device) -> None:
    few, many = (torch.randn(1, classes, 3, 4).to(device) for classes in (256, 257))
    assert upsample_argmax(few, (17, 25)).dtype == torch.uint8
    assert upsample_argmax(many, (17, 25)).dtype == torch.int32
    expected = upsampled(few, (17, 25)).argmax(1)
    for dtype in (torch.uint8, torch.int32, torch.int64):
        labels = upsample_argmax(few, (17, 25), dtype=dtype)
        assert labels.dtype == dtype
        assert torch.equal(labels.long(), expected)


@with_reference
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_softmax_adds_into_a_window(layout: Any, flip: bool, device: torch.device) -> None:
    logits = torch.randn(2, 7, 4, 5).to(device)
    canvas = layout(torch.randn(2, 7, 40, 50).to(device))
    before = canvas.clone()
    window = canvas[:, :, 3:28, 5:38]
    returned = upsample_softmax(logits, (25, 33), flip=flip, out=window, weight=0.25)
    assert returned is window
    expected = before.clone()
    probabilities = upsampled(logits, (25, 33)).softmax(1)
    expected[:, :, 3:28, 5:38] += 0.25 * (probabilities.flip(3) if flip else probabilities)
    torch.testing.assert_close(canvas, expected, rtol=0, atol=1e-6)
    outside = torch.ones_like(canvas, dtype=torch.bool)
    outside[:, :, 3:28, 5:38] = False
    assert torch.equal(canvas[outside], before[outside])


def test_gradient_of_softmax_through_plain_pytorch(device: torch.device) -> None:
    logits = torch.randn(1, 3, 4, 5).to(device).requires_grad_()
    grad = torch.randn(1, 3, 9, 7).to(device)
    torch.testing.assert_close(
        torch.autograd.grad(upsample_softmax(logits, (9, 7)), logits, grad),
        torch.autograd.grad(upsampled(logits, (9, 7)).softmax(1), logits, grad),
    )
    with pytest.raises(RuntimeError, match="out: expected None for logits that require gradients"):
        upsample_softmax(logits, (9, 7), out=torch.zeros_like(grad))
    with torch.no_grad():
        upsample_softmax(logits, (9, 7), out=torch.zeros_like(grad))


@pytest.mark.parametrize("batch", [0, 2])
@with_reference
def test_batches(batch: int, device: torch.device) -> None:
    logits = torch.randn(batch, 3, 4, 5).to(device)
    assert upsample_argmax(logits, (9, 7)).shape == (batch, 9, 7)
    assert upsample_softmax(logits, (9, 7)).shape == (batch, 3, 9, 7)


def test_op_contract(implementation: str, device: torch.device) -> None:
    ops, logits = torch.ops.pspfast, torch.randn(2, 3, 4, 5).to(device)
    out = torch.zeros(2, 3, 9, 7, device=device)
    for op, arguments in (
        (ops.upsample_argmax, (logits, 9, 7, True, torch.uint8)),
        (ops.upsample_argmax, (logits, 9, 7, False, torch.int64)),
        (ops.upsample_softmax, (logits, 9, 7, True, True, 0.5)),
        (ops.upsample_softmax_add, (out, logits, True, False, 0.5)),
    ):
        torch.library.opcheck(OpTester.op_of(op, implementation), arguments)


def test_compiles_without_graph_break(device: torch.device) -> None:
    def function(logits: Tensor, canvas: Tensor) -> tuple[Tensor, Tensor]:
        upsample_softmax(logits, (9, 7), out=canvas[:, :, 1:10, 2:9])
        return upsample_argmax(logits, (9, 7)), canvas.sum()

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    logits = torch.randn(2, 3, 4, 5).to(device)
    first, second = (torch.zeros(2, 3, 12, 12, device=device) for _ in range(2))
    for got, expected in zip(compiled(logits, first), function(logits, second), strict=True):
        torch.testing.assert_close(got, expected)


def test_autocast_changes_nothing(device: torch.device) -> None:
    logits = torch.randn(2, 3, 4, 5).to(device)
    expected = upsample_softmax(logits, (9, 7))
    with torch.autocast(device.type, torch.bfloat16):
        assert torch.equal(upsample_softmax(logits, (9, 7)), expected)


@with_reference
def test_errors(device: torch.device) -> None:
    logits = torch.zeros(2, 3, 4, 4, device=device)

    def raises(error: type[Exception], message: str) -> Any:
        return pytest.raises(error, match=f"^upsample_{message}")

    for name, op in (("argmax", upsample_argmax), ("softmax", upsample_softmax)):
        with raises(ValueError, rf"{name}: logits: expected \[N, C, H, W\], got shape"):
            op(logits[0], (9, 9))
        with raises(TypeError, f"{name}: logits: expected float32"):
            op(logits.long(), (9, 9))
        with raises(ValueError, f"{name}: logits: expected K of at least 1, got 0"):
            op(logits[:, :0], (9, 9))
        with raises(ValueError, f"{name}: size: expected H and W of .*1.*, got .*0"):
            op(logits, (9, 0))
    with raises(TypeError, "argmax: dtype: expected uint8, int32 or int64, got"):
        upsample_argmax(logits, (9, 9), dtype=torch.int16)
    with raises(ValueError, "argmax: dtype: expected int32 or int64 for 257 classes, got uint8"):
        upsample_argmax(torch.zeros(1, 257, 2, 2, device=device), (9, 9), dtype=torch.uint8)
    with raises(ValueError, r"softmax: out: expected shape \[2, 3, 9, 9\], got \[2, 3, 9, 8\]"):
        upsample_softmax(logits, (9, 9), out=torch.zeros(2, 3, 9, 8, device=device))


def test_out_of_another_dtype() -> None:
    logits, out = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 9, 9, dtype=torch.float64)
    with pytest.raises(
        TypeError, match=r"^upsample_softmax: out: expected torch\.float32, got torch\.float64"
    ):
        upsample_softmax(logits, (9, 9), out=out)

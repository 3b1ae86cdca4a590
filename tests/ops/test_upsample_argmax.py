import os
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from op_tester import DTYPES, LAYOUTS
from torch import Tensor

import pspfast
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
def test_argmax(dtype: torch.dtype, layout: Any, align_corners: bool) -> None:
    for shape, size in CASES:
        logits = layout(torch.randn(shape).to(dtype))
        labels = upsample_argmax(logits, size, align_corners=align_corners)
        assert labels.shape == (shape[0], *size)
        assert_largest(labels, upsampled(logits.double(), size, align_corners))


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_softmax(dtype: torch.dtype, layout: Any, align_corners: bool) -> None:
    for shape, size in CASES:
        logits = layout((4 * torch.randn(shape)).to(dtype))
        got = upsample_softmax(logits, size, align_corners=align_corners, weight=0.5)
        expected = 0.5 * upsampled(logits.double(), size, align_corners).softmax(1)
        assert got.dtype == sums_dtype(dtype)
        torch.testing.assert_close(got.double(), expected, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("level", ["default", "avx2", "avx512"])
def test_every_vector_level(level: str) -> None:
    """In processes of their own: torch picks the level once, at start-up."""
    tests = [f"{__file__}::{name}" for name in ("test_argmax", "test_softmax")]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--no-header", *tests],
        env=os.environ | {"ATEN_CPU_CAPABILITY": level},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr


@settings(max_examples=60, deadline=None)
@given(
    source=st.tuples(*[st.integers(1, 20)] * 2),
    size=st.tuples(*[st.integers(1, 60)] * 2),
    classes=st.integers(1, 40),
    align_corners=st.booleans(),
    flip=st.booleans(),
    channels_last=st.booleans(),
)
def test_any_size(
    source: tuple[int, int],
    size: tuple[int, int],
    classes: int,
    align_corners: bool,
    flip: bool,
    channels_last: bool,
) -> None:
    logits = torch.randn(2, classes, *source, dtype=torch.float64)
    if channels_last:
        logits = logits.contiguous(memory_format=torch.channels_last)
    full = upsampled(logits, size, align_corners)
    assert_largest(upsample_argmax(logits, size, align_corners=align_corners), full, 1e-12)
    got = upsample_softmax(logits, size, align_corners=align_corners, flip=flip)
    torch.testing.assert_close(got, full.softmax(1).flip(3) if flip else full.softmax(1))


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_of_equal_logits_the_first_class(backend: str) -> None:
    logits = torch.zeros(1, 5, 3, 4)
    with pspfast.backend(backend):
        assert (upsample_argmax(logits, (17, 25)) == 0).all()
        logits[:, 2:4] = 1.5
        assert (upsample_argmax(logits, (17, 25)) == 2).all()


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_label_dtypes(backend: str) -> None:
    few, many = torch.randn(1, 256, 3, 4), torch.randn(1, 257, 3, 4)
    with pspfast.backend(backend):
        assert upsample_argmax(few, (17, 25)).dtype == torch.uint8
        assert upsample_argmax(many, (17, 25)).dtype == torch.int32
        expected = upsampled(few, (17, 25)).argmax(1)
        for dtype in (torch.uint8, torch.int32, torch.int64):
            labels = upsample_argmax(few, (17, 25), dtype=dtype)
            assert labels.dtype == dtype
            assert torch.equal(labels.long(), expected)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_softmax_adds_into_a_window(layout: Any, flip: bool, backend: str) -> None:
    logits = torch.randn(2, 7, 4, 5)
    canvas = layout(torch.randn(2, 7, 40, 50))
    before = canvas.clone()
    window = canvas[:, :, 3:28, 5:38]
    with pspfast.backend(backend):
        returned = upsample_softmax(logits, (25, 33), flip=flip, out=window, weight=0.25)
    assert returned is window
    expected = before.clone()
    probabilities = upsampled(logits, (25, 33)).softmax(1)
    expected[:, :, 3:28, 5:38] += 0.25 * (probabilities.flip(3) if flip else probabilities)
    torch.testing.assert_close(canvas, expected, rtol=0, atol=1e-6)
    outside = torch.ones_like(canvas, dtype=torch.bool)
    outside[:, :, 3:28, 5:38] = False
    assert torch.equal(canvas[outside], before[outside])


def test_gradient_of_softmax_through_plain_pytorch() -> None:
    logits = torch.randn(1, 3, 4, 5, requires_grad=True)
    grad = torch.randn(1, 3, 9, 7)
    torch.testing.assert_close(
        torch.autograd.grad(upsample_softmax(logits, (9, 7)), logits, grad),
        torch.autograd.grad(upsampled(logits, (9, 7)).softmax(1), logits, grad),
    )
    with pytest.raises(RuntimeError, match="out: expected None for logits that require gradients"):
        upsample_softmax(logits, (9, 7), out=torch.zeros(1, 3, 9, 7))
    with torch.no_grad():
        upsample_softmax(logits, (9, 7), out=torch.zeros(1, 3, 9, 7))


@pytest.mark.parametrize("batch", [0, 2])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_batches(batch: int, backend: str) -> None:
    logits = torch.randn(batch, 3, 4, 5)
    with pspfast.backend(backend):
        assert upsample_argmax(logits, (9, 7)).shape == (batch, 9, 7)
        assert upsample_softmax(logits, (9, 7)).shape == (batch, 3, 9, 7)


def test_op_contract() -> None:
    ops, logits = torch.ops.pspfast, torch.randn(2, 3, 4, 5)
    torch.library.opcheck(ops.upsample_argmax, (logits, 9, 7, True, None))
    torch.library.opcheck(ops.upsample_argmax, (logits, 9, 7, False, torch.int64))
    torch.library.opcheck(ops.upsample_softmax, (logits, 9, 7, True, True, 0.5))
    out = torch.zeros(2, 3, 9, 7)
    torch.library.opcheck(ops.upsample_softmax_add, (out, logits, True, False, 0.5))


def test_compiles_without_graph_break() -> None:
    def function(logits: Tensor, canvas: Tensor) -> tuple[Tensor, Tensor]:
        upsample_softmax(logits, (9, 7), out=canvas[:, :, 1:10, 2:9])
        return upsample_argmax(logits, (9, 7)), canvas.sum()

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    logits = torch.randn(2, 3, 4, 5)
    for got, expected in zip(
        compiled(logits, torch.zeros(2, 3, 12, 12)),
        function(logits, torch.zeros(2, 3, 12, 12)),
        strict=True,
    ):
        torch.testing.assert_close(got, expected)


def test_autocast_changes_nothing() -> None:
    logits = torch.randn(2, 3, 4, 5)
    expected = upsample_softmax(logits, (9, 7))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(upsample_softmax(logits, (9, 7)), expected)


LOGITS = torch.zeros(2, 3, 4, 4)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_errors(backend: str) -> None:
    def raises(error: type[Exception], message: str) -> Any:
        return pytest.raises(error, match=f"^upsample_{message}")

    with pspfast.backend(backend):
        for name, op in (("argmax", upsample_argmax), ("softmax", upsample_softmax)):
            with raises(ValueError, rf"{name}: logits: expected \[N, C, H, W\], got shape"):
                op(LOGITS[0], (9, 9))
            with raises(TypeError, f"{name}: logits: expected float32"):
                op(LOGITS.long(), (9, 9))
            with raises(ValueError, f"{name}: logits: expected K of at least 1, got 0"):
                op(LOGITS[:, :0], (9, 9))
            with raises(ValueError, f"{name}: size: expected H and W of .*1.*, got .*0"):
                op(LOGITS, (9, 0))
        with raises(TypeError, "argmax: dtype: expected uint8, int32 or int64, got"):
            upsample_argmax(LOGITS, (9, 9), dtype=torch.int16)
        with raises(
            ValueError, "argmax: dtype: expected int32 or int64 for 257 classes, got uint8"
        ):
            upsample_argmax(torch.zeros(1, 257, 2, 2), (9, 9), dtype=torch.uint8)
        with raises(ValueError, r"softmax: out: expected shape \[2, 3, 9, 9\], got \[2, 3, 9, 8\]"):
            upsample_softmax(LOGITS, (9, 9), out=torch.zeros(2, 3, 9, 8))
    with raises(TypeError, "softmax: out: expected Float, got Double"):
        upsample_softmax(LOGITS, (9, 9), out=torch.zeros(2, 3, 9, 9, dtype=torch.float64))

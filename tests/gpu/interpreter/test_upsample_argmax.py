"""The Triton kernels of upsample_argmax and upsample_softmax in the interpreter, against float64
PyTorch."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from triton.runtime.interpreter import InterpreterBuilder

from pspfast import backends
from pspfast.kernels.jit import upsample_tiles
from pspfast.kernels.upsample_argmax import (
    upsample_argmax,
    upsample_softmax,
    upsample_softmax_add,
)

FLOAT, HALF, BFLOAT = torch.float32, torch.float16, torch.bfloat16
# Logits [N, K, h, w] and the size of the image. The interpreter takes its time: few tiles.
CASES = [
    ((2, 5, 3, 4), (9, 7), FLOAT),
    ((1, 3, 3, 2), (5, 6), HALF),
    ((1, 10, 3, 2), (5, 6), BFLOAT),
    # Several blocks of classes: of 4, and of 16 or 8 where classes are innermost in memory.
    ((1, 34, 2, 2), (3, 4), FLOAT),
    ((1, 18, 2, 2), (3, 4), HALF),
    # Fewer pixels than logits.
    ((1, 3, 7, 20), (3, 6), FLOAT),
    # More rows between two of logits than a tile holds, 8, and more columns.
    ((1, 2, 2, 1), (20, 40), FLOAT),
    ((1, 2, 1, 2), (1, 260), FLOAT),
    ((2, 3, 1, 1), (2, 3), FLOAT),
    ((1, 1, 2, 2), (3, 3), FLOAT),
    ((1, 1, 1, 1), (1, 1), FLOAT),
]

both_alignments = pytest.mark.parametrize("align_corners", [False, True], ids=["", "align_corners"])
both_formats = pytest.mark.parametrize(
    "channels_last", [False, True], ids=["contiguous", "channels_last"]
)
every_case = pytest.mark.parametrize(("shape", "size", "dtype"), CASES, ids=str)


def upsampled(logits: Tensor, size: tuple[int, int], align_corners: bool = True) -> Tensor:
    return F.interpolate(logits.double(), size, mode="bilinear", align_corners=align_corners)


def as_given(x: Tensor, channels_last: bool) -> Tensor:
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if channels_last else x


def assert_largest(labels: Tensor, full: Tensor) -> None:
    """Labels name the largest logits, to rounding."""
    chosen = full.gather(1, labels[:, None].long())[:, 0]
    torch.testing.assert_close(chosen, full.amax(1), rtol=1e-6, atol=1e-6)


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
@every_case
def test_argmax(
    shape: tuple[int, ...],
    size: tuple[int, int],
    dtype: torch.dtype,
    align_corners: bool,
    channels_last: bool,
) -> None:
    logits = as_given(torch.randn(shape).to(dtype), channels_last)
    labels = upsample_argmax(logits, *size, align_corners, torch.int32)
    assert labels.shape == (shape[0], *size)
    assert_largest(labels, upsampled(logits, size, align_corners))


@both_formats
@both_alignments
@every_case
def test_softmax(
    shape: tuple[int, ...],
    size: tuple[int, int],
    dtype: torch.dtype,
    align_corners: bool,
    channels_last: bool,
) -> None:
    logits = as_given((4 * torch.randn(shape)).to(dtype), channels_last)
    got = upsample_softmax(logits, *size, align_corners, False, 0.5)
    assert got.dtype == torch.float32
    expected = 0.5 * upsampled(logits, size, align_corners).softmax(1)
    torch.testing.assert_close(got.double(), expected, rtol=3e-6, atol=1e-7)


@both_formats
def test_every_number_is_written_once(written: list[np.ndarray], channels_last: bool) -> None:
    # Of eleven rows, 5, 4 and 2 lie behind each of the logits'; a tile has 4.
    logits = as_given(torch.randn(1, 3, 3, 4), channels_last)
    labels = upsample_argmax(logits, 11, 9, False, torch.int32)
    assert_written_once(written, labels.numel())
    probabilities = upsample_softmax(logits, 11, 9, False, True, 1.0)
    assert_written_once(written, probabilities.numel())


# Of a canvas [N, K, H, W], in memory, and its window.
CANVASES = [
    (lambda x: x, (slice(1, 6), slice(2, 6))),
    (lambda x: as_given(x, True), (slice(1, 6), slice(2, 6))),
    (lambda x: x.transpose(0, 2).contiguous().transpose(0, 2), (slice(0, 10, 2), slice(3, 7))),
    (lambda x: x, (slice(0, 5), slice(1, 9, 2))),
]


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("canvas", CANVASES, ids=["contiguous", "channels_last", "other", "steps"])
@both_formats
def test_softmax_adds_into_a_window(channels_last: bool, canvas: Any, flip: bool) -> None:
    as_canvas, (rows, cols) = canvas
    logits = as_given(torch.randn(2, 5, 2, 3), channels_last)
    before = torch.randn(2, 5, 10, 9)
    out = as_canvas(before.clone())
    window = out[:, :, rows, cols]
    upsample_softmax_add(window, logits, True, flip, 0.25)
    probabilities = upsampled(logits, (5, 4)).softmax(1)
    expected = before.double()
    expected[:, :, rows, cols] += 0.25 * (probabilities.flip(3) if flip else probabilities)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=1e-6)
    outside = torch.ones_like(before, dtype=torch.bool)
    outside[:, :, rows, cols] = False
    assert torch.equal(out[outside], before[outside])


def test_flipped_softmax() -> None:
    """Of more columns than a tile holds."""
    logits = torch.randn(1, 2, 1, 3)
    flipped = upsample_softmax(logits, 1, 260, False, True, 1.0)
    straight = upsample_softmax(logits, 1, 260, False, False, 1.0)
    assert torch.equal(flipped, straight.flip(3))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_label_dtypes(dtype: torch.dtype) -> None:
    logits = torch.randn(1, 256, 2, 1)
    logits[:, 255, 0] = logits[:, 130, 1] = 9.0
    labels = upsample_argmax(logits, 2, 1, True, dtype)
    assert labels.dtype == dtype
    assert labels.flatten().tolist() == [255, 130]


@both_formats
@pytest.mark.parametrize("first", [0, 3, 7, 15])
def test_of_equal_logits_the_first_class(first: int, channels_last: bool) -> None:
    # Its equals are in the same block of classes or the next, and in a later one.
    logits = as_given(torch.randn(1, 34, 2, 2).clamp(max=3.0), channels_last)
    logits[:, first] = logits[:, first + 1] = logits[:, first + 17] = 4.0
    assert (upsample_argmax(logits, 3, 3, False, torch.int64) == first).all()


@both_formats
@pytest.mark.parametrize("value", [0.0, -3e38])
def test_all_equal(value: float, channels_last: bool) -> None:
    logits = as_given(torch.full((1, 5, 2, 2), value), channels_last)
    assert (upsample_argmax(logits, 3, 3, True, torch.uint8) == 0).all()
    probabilities = upsample_softmax(logits, 3, 3, True, False, 1.0)
    torch.testing.assert_close(probabilities, torch.full((1, 5, 3, 3), 0.2))


@both_formats
@pytest.mark.parametrize("scale", [1e2, 1e4, 1e30])
def test_large_logits(scale: float, channels_last: bool) -> None:
    logits = as_given(scale * torch.randn(1, 9, 3, 2), channels_last)
    full = upsampled(logits, (9, 5))
    assert_largest(upsample_argmax(logits, 9, 5, True, torch.uint8), full)
    got = upsample_softmax(logits, 9, 5, True, False, 1.0)
    torch.testing.assert_close(got.double(), full.softmax(1), rtol=0, atol=1e-3)


def test_logits_that_differ_much_between_neighbours() -> None:
    logits = torch.full((1, 3, 1, 2), -100.0)
    logits[0, 0, 0, 0] = logits[0, 1, 0, 1] = 100.0
    got = upsample_softmax(logits, 1, 9, True, False, 1.0)
    expected = upsampled(logits, (1, 9)).softmax(1)
    # Exponents of up to 200, in float32.
    torch.testing.assert_close(got.double(), expected, rtol=2e-5, atol=1e-37)


def test_other_strides_are_copied() -> None:
    logits = torch.randn(1, 3, 2, 6)[..., ::2]
    for op in (
        lambda x: upsample_argmax(x, 5, 4, False, torch.uint8),
        lambda x: upsample_softmax(x, 5, 4, False, False, 1.0),
    ):
        assert torch.equal(op(logits), op(logits.contiguous()))


def test_no_image() -> None:
    logits = torch.zeros(0, 3, 4, 5)
    assert upsample_argmax(logits, 9, 7, True, torch.uint8).shape == (0, 9, 7)
    assert upsample_softmax(logits, 9, 7, True, False, 1.0).shape == (0, 3, 9, 7)
    upsample_softmax_add(torch.zeros(0, 3, 9, 7), logits, True, False, 1.0)


def test_longest_axis() -> None:
    """Positions times sources are 2**23 * 300, which needs 64 bits."""
    logits = torch.randn(1, 2, 1, 2**23)
    labels = upsample_argmax(logits, 1, 300, True, torch.uint8)
    position = torch.arange(300) * (2**23 - 1)
    low, weight = position // 299, position % 299 / 299.0
    row = logits[0, :, 0].double()
    full = row[:, low] + weight * (row[:, (low + 1).clamp(max=2**23 - 1)] - row[:, low])
    assert_largest(labels[:, 0], full[None])


@both_alignments
def test_index_maths_of_long_axes(monkeypatch: pytest.MonkeyPatch, align_corners: bool) -> None:
    """In 64 bits it gives the same."""
    logits = torch.randn(1, 3, 1, 4)
    narrow = upsample_softmax(logits, 5, 7, align_corners, False, 1.0)
    monkeypatch.setattr(upsample_tiles, "_INT32_PRODUCT", 1)
    assert torch.equal(upsample_softmax(logits, 5, 7, align_corners, False, 1.0), narrow)


def test_the_same_bits_in_any_batch() -> None:
    logits = torch.randn(2, 5, 2, 3)
    both, again = (upsample_softmax(logits, 5, 4, True, False, 1.0) for _ in range(2))
    assert torch.equal(both, again)
    assert torch.equal(upsample_softmax(logits[1:], 5, 4, True, False, 1.0), both[1:])


def test_ops() -> None:
    ops, logits = torch.ops.pspfast, torch.randn(2, 3, 2, 3)
    full = upsampled(logits, (5, 4), False)
    backends.load_triton_ops()
    labels = ops.upsample_argmax_triton(logits, 5, 4, False, torch.int32)
    assert labels.dtype == torch.int32
    assert_largest(labels, full)
    got = ops.upsample_softmax_triton(logits, 5, 4, False, True, 0.5)
    torch.testing.assert_close(got.double(), 0.5 * full.softmax(1).flip(3), rtol=0, atol=1e-6)
    assert ops.upsample_softmax_add_triton(got, logits, False, True, 0.5) is None
    torch.testing.assert_close(got.double(), full.softmax(1).flip(3), rtol=0, atol=1e-6)

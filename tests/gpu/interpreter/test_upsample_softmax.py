"""The Triton kernel of upsample_softmax in the interpreter, against float64 PyTorch."""

from typing import Any

import numpy as np
import pytest
import torch
from maps import as_given, both_alignments, both_formats
from upsample_logits import assert_written_once, every_shape, upsampled

from pspfast import backends
from pspfast.kernels import upsample_tiles
from pspfast.kernels.upsample_softmax import upsample_softmax, upsample_softmax_add


@both_formats
@both_alignments
@every_shape
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
    expected = 0.5 * upsampled(logits.double(), size, align_corners).softmax(1)
    torch.testing.assert_close(got.double(), expected, rtol=3e-6, atol=1e-7)


@both_formats
def test_every_number_is_written_once(written: list[np.ndarray], channels_last: bool) -> None:
    # Of eleven rows, 5, 4 and 2 lie behind each of the logits'; a tile has 4.
    logits = as_given(torch.randn(1, 3, 3, 4), channels_last)
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
    probabilities = upsampled(logits.double(), (5, 4)).softmax(1)
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


@both_formats
@pytest.mark.parametrize("value", [0.0, -3e38])
def test_all_equal(value: float, channels_last: bool) -> None:
    logits = as_given(torch.full((1, 5, 2, 2), value), channels_last)
    probabilities = upsample_softmax(logits, 3, 3, True, False, 1.0)
    torch.testing.assert_close(probabilities, torch.full((1, 5, 3, 3), 0.2))


@both_formats
@pytest.mark.parametrize("scale", [1e2, 1e4, 1e30])
def test_large_logits(scale: float, channels_last: bool) -> None:
    logits = as_given(scale * torch.randn(1, 9, 3, 2), channels_last)
    got = upsample_softmax(logits, 9, 5, True, False, 1.0)
    expected = upsampled(logits.double(), (9, 5)).softmax(1)
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=1e-3)


def test_logits_that_differ_much_between_neighbours() -> None:
    logits = torch.full((1, 3, 1, 2), -100.0)
    logits[0, 0, 0, 0] = logits[0, 1, 0, 1] = 100.0
    got = upsample_softmax(logits, 1, 9, True, False, 1.0)
    expected = upsampled(logits.double(), (1, 9)).softmax(1)
    # Exponents of up to 200, in float32.
    torch.testing.assert_close(got.double(), expected, rtol=2e-5, atol=1e-37)


def test_nan_stays_at_its_pixels() -> None:
    logits = torch.randn(1, 5, 3, 3)
    logits[0, 3, 0, 2] = torch.nan
    got = upsample_softmax(logits, 5, 9, True, False, 1.0)
    assert torch.equal(got.isnan(), upsampled(logits.double(), (5, 9)).softmax(1).isnan())


def test_other_strides_are_copied() -> None:
    logits = torch.randn(1, 3, 2, 6)[..., ::2]
    got = upsample_softmax(logits, 5, 4, False, False, 1.0)
    assert torch.equal(got, upsample_softmax(logits.contiguous(), 5, 4, False, False, 1.0))


def test_no_image() -> None:
    logits = torch.zeros(0, 3, 4, 5)
    assert upsample_softmax(logits, 9, 7, True, False, 1.0).shape == (0, 3, 9, 7)
    upsample_softmax_add(torch.zeros(0, 3, 9, 7), logits, True, False, 1.0)


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
    expected = upsampled(logits.double(), (5, 4), False).softmax(1).flip(3)
    backends.load_triton_ops()
    got = ops.upsample_softmax_triton(logits, 5, 4, False, True, 0.5)
    torch.testing.assert_close(got.double(), 0.5 * expected, rtol=0, atol=1e-6)
    assert ops.upsample_softmax_add_triton(got, logits, False, True, 0.5) is None
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=1e-6)

"""The Triton kernel of upsample_argmax in the interpreter, against float64 PyTorch."""

import numpy as np
import pytest
import torch
from maps import as_given, both_alignments, both_formats, every_dtype
from upsample_logits import (
    NAN_SIZE,
    assert_largest,
    assert_written_once,
    every_nan,
    every_shape,
    first_nan_or_largest,
    logits_with_nan,
    upsampled,
)

from pspfast import backends
from pspfast.kernels.upsample_argmax import upsample_argmax


@both_formats
@both_alignments
@every_shape
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
    assert_largest(labels, upsampled(logits.double(), size, align_corners))


@both_formats
def test_every_label_is_written_once(written: list[np.ndarray], channels_last: bool) -> None:
    # Of eleven rows, 5, 4 and 2 lie behind each of the logits'; a tile has 4. Programs have 48
    # of 64 columns.
    logits = as_given(torch.randn(1, 3, 3, 4), channels_last)
    labels = upsample_argmax(logits, 11, 130, False, torch.int32)
    assert_written_once(written, labels.numel())


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


@every_dtype
@both_formats
@every_nan
def test_the_first_nan_wins(
    classes: int, nan_classes: tuple[int, ...], channels_last: bool, dtype: torch.dtype
) -> None:
    logits = logits_with_nan(classes, nan_classes, dtype, channels_last)
    labels = upsample_argmax(logits, *NAN_SIZE, True, torch.int64)
    assert torch.equal(labels, first_nan_or_largest(logits))


@both_formats
def test_minus_infinity_is_no_nan(channels_last: bool) -> None:
    """Differences of infinities are, but a class without a chance does not win by them."""
    logits = as_given(torch.randn(1, 5, 3, 3), channels_last)
    logits[:, 1] = logits[:, 3, 1] = -torch.inf
    finite = logits.clamp(min=-1e30)
    labels = upsample_argmax(logits, 5, 9, True, torch.uint8)
    assert torch.equal(labels, upsample_argmax(finite, 5, 9, True, torch.uint8))
    assert not (labels == 1).any()


@both_formats
@pytest.mark.parametrize("scale", [1e2, 1e4, 1e30])
def test_large_logits(scale: float, channels_last: bool) -> None:
    logits = as_given(scale * torch.randn(1, 9, 3, 2), channels_last)
    labels = upsample_argmax(logits, 9, 5, True, torch.uint8)
    assert_largest(labels, upsampled(logits.double(), (9, 5)))


def test_other_strides_are_copied() -> None:
    logits = torch.randn(1, 3, 2, 6)[..., ::2]
    labels = upsample_argmax(logits, 5, 4, False, torch.uint8)
    assert torch.equal(labels, upsample_argmax(logits.contiguous(), 5, 4, False, torch.uint8))


def test_no_image() -> None:
    logits = torch.zeros(0, 3, 4, 5)
    assert upsample_argmax(logits, 9, 7, True, torch.uint8).shape == (0, 9, 7)


def test_longest_axis() -> None:
    """Positions times sources are 2**23 * 300, which needs 64 bits."""
    logits = torch.randn(1, 2, 1, 2**23)
    labels = upsample_argmax(logits, 1, 300, True, torch.uint8)
    position = torch.arange(300) * (2**23 - 1)
    low, weight = position // 299, position % 299 / 299.0
    row = logits[0, :, 0].double()
    full = row[:, low] + weight * (row[:, (low + 1).clamp(max=2**23 - 1)] - row[:, low])
    assert_largest(labels[:, 0], full[None])


def test_op() -> None:
    logits = torch.randn(2, 3, 2, 3)
    backends.load_triton_ops()
    labels = torch.ops.pspfast.upsample_argmax_triton(logits, 5, 4, False, torch.int32)
    assert labels.dtype == torch.int32
    assert_largest(labels, upsampled(logits.double(), (5, 4), False))

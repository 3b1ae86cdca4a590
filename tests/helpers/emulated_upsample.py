"""What the libraries of upsample_argmax, upsample_softmax and upsample_cross_entropy, built on the
emulation, are called with."""

import ctypes
from dataclasses import dataclass
from typing import Any

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


def problem_of(case: Case, dtype: torch.dtype, channels_last: bool) -> Problem:
    numbers = (case.align_corners, channels_last, DTYPES.index(dtype))
    return Problem(*case.shape, *case.size, *numbers)


def upsampled(case: Case, logits: Tensor) -> Tensor:
    return F.interpolate(logits, case.size, mode="bilinear", align_corners=case.align_corners)


def as_stored(logits: Tensor, channels_last: bool) -> Tensor:
    return (logits.movedim(1, -1) if channels_last else logits).contiguous()


def pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def poisoned(size: int, dtype: torch.dtype) -> Tensor:
    """`size` elements and a margin, of NaN or of 77."""
    return torch.full((size + MARGIN,), torch.nan if dtype.is_floating_point else 77, dtype=dtype)


def unpoisoned(buffer: Tensor, shape: tuple[int, ...]) -> Tensor:
    written, margin = buffer[:-MARGIN], buffer[-MARGIN:]
    assert torch.equal(margin, poisoned(0, buffer.dtype)) or margin.isnan().all()
    return written.view(shape)


def reads_nan(logits: Tensor, case: Case) -> Tensor:
    """[N, K, H, W]: whether one of the four logits that a pixel reads is NaN."""
    is_nan = logits.isnan()
    for axis, size in zip((2, 3), case.size, strict=True):
        count, position = logits.shape[axis], torch.arange(size)
        if case.align_corners:
            low = position * (count - 1) // max(size - 1, 1)
        else:
            low = ((2 * position + 1) * count - size).clamp(min=0) // (2 * size)
        high = (low + 1).clamp(max=count - 1)
        is_nan = is_nan.index_select(axis, low) | is_nan.index_select(axis, high)
    return is_nan


def check_labels_of_nan(labels_of: Any, case: Case, logits: Tensor) -> None:
    """``labels_of(logits)`` are torch.argmax's where logits are NaN, else as without NaN."""
    classes, without = case.shape[1], labels_of(logits).long()
    for of_nan in (0, classes // 2, classes - 1):
        with_nan = logits.clone()
        with_nan[:, of_nan] = torch.nan
        assert (upsampled(case, with_nan.double()).argmax(1) == of_nan).all()
        assert (labels_of(with_nan) == of_nan).all()
    with_nan = logits.clone()
    with_nan[torch.rand(case.shape) < 3 / logits[0].numel()] = torch.nan
    with_nan[0, -1, -1, -1] = torch.nan
    is_nan = reads_nan(with_nan, case)
    # Of equal numbers argmax is the first.
    expected = torch.where(is_nan.any(1), is_nan.byte().argmax(1), without)
    assert torch.equal(labels_of(with_nan).long(), expected)
    # Infinities of one sign leave NaN of each other. They are not chosen.
    masked = logits.clone()
    masked[:, classes // 2 :] = -torch.inf
    if classes > 1:
        assert (labels_of(masked) < classes // 2).all()

"""What the tests of upsample_argmax, upsample_softmax and upsample_cross_entropy in Triton's
interpreter share."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from maps import BFLOAT, FLOAT, HALF, as_given
from torch import Tensor

# Logits [N, K, h, w] and the size of the image. The interpreter takes its time: few tiles.
SHAPES = [
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

every_shape = pytest.mark.parametrize(("shape", "size", "dtype"), SHAPES, ids=str)

# Numbers of classes, and those that are NaN: one block of classes, or several, of 4, 8 or 16.
NAN_CLASSES = [
    (3, (0,)),
    (3, (1,)),
    (3, (0, 2)),
    (34, (33,)),
    (34, (1, 17)),
    (34, (18, 2, 33)),
]
every_nan = pytest.mark.parametrize(("classes", "nan_classes"), NAN_CLASSES, ids=str)
# Between three sources: all positions and weights are exact in any arithmetic.
NAN_SIZE = (5, 9)


def upsampled(logits: Tensor, size: tuple[int, int], align_corners: bool = True) -> Tensor:
    return F.interpolate(logits, size, mode="bilinear", align_corners=align_corners)


def assert_largest(labels: Tensor, full: Tensor) -> None:
    """Labels name the largest logits, to rounding."""
    chosen = full.gather(1, labels[:, None].long())[:, 0]
    torch.testing.assert_close(chosen, full.amax(1), rtol=1e-6, atol=1e-6)


def logits_with_nan(
    classes: int, nan_classes: tuple[int, ...], dtype: torch.dtype, channels_last: bool
) -> Tensor:
    """[2, K, 3, 3]: the classes are NaN in the first image; in the second one are single logits of
    the first class and of the last."""
    logits = torch.randn(2, classes, 3, 3).to(dtype)
    logits[0, list(nan_classes)] = torch.nan
    logits[1, nan_classes[0], 1, 2] = torch.nan
    logits[1, nan_classes[-1], 0, 0] = torch.nan
    return as_given(logits, channels_last)


def first_nan_or_largest(logits: Tensor) -> Tensor:
    """Labels of NAN_SIZE by PyTorch in float64, of align_corners."""
    return upsampled(logits.double(), NAN_SIZE).argmax(1)


def assert_written_once(written: list[np.ndarray], numbers: int) -> None:
    """Programs run one after the other here: what two of them write would be right in the end."""
    addresses = np.concatenate(written)
    assert len(addresses) == len(np.unique(addresses)) == numbers
    written.clear()

"""What the tests of upsample_argmax, upsample_softmax and upsample_cross_entropy in Triton's
interpreter share."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from maps import BFLOAT, FLOAT, HALF
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


def upsampled(logits: Tensor, size: tuple[int, int], align_corners: bool = True) -> Tensor:
    return F.interpolate(logits, size, mode="bilinear", align_corners=align_corners)


def assert_largest(labels: Tensor, full: Tensor) -> None:
    """Labels name the largest logits, to rounding."""
    chosen = full.gather(1, labels[:, None].long())[:, 0]
    torch.testing.assert_close(chosen, full.amax(1), rtol=1e-6, atol=1e-6)


def assert_written_once(written: list[np.ndarray], numbers: int) -> None:
    """Programs run one after the other here: what two of them write would be right in the end."""
    addresses = np.concatenate(written)
    assert len(addresses) == len(np.unique(addresses)) == numbers
    written.clear()

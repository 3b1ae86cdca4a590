"""What launches of upsample_argmax, upsample_softmax and upsample_cross_entropy share: how programs
share an image. The kernels' part is jit/common/upsample_tiles.py."""

from typing import NamedTuple

import triton
from torch import Tensor

from .launch import dense, next_power_of_2, width_divisor

# Elements of a tile: 8 for each of 128 threads, which hold up to four numbers of each element.
_TILE_ELEMENTS = 1024
# Rows of a tile: as many as the usual eightfold upsampling puts between two rows of logits.
_MOST_ROWS = 8
# From this product of positions and sources on, index maths takes int64: it doubles the product and
# adds little.
_INT32_PRODUCT = 2**29


class Plan(NamedTuple):
    """A launch for logits ``[N, K, rows, cols]``."""

    logits: Tensor  # in a format that kernels read
    channels_last: bool
    sizes: tuple[int, ...]  # classes / divisor, rows, cols, height, width
    constants: dict[str, object]

    def grid(self) -> tuple[int]:
        """One program for every image, row of logits and block of columns of the image."""
        _, rows, _, _, width = self.sizes
        block_w = self.constants["BLOCK_W"]
        assert isinstance(block_w, int)
        return (self.logits.shape[0] * rows * triton.cdiv(width, block_w),)


def upsampling(size: int, sources: int, align_corners: bool) -> tuple[int, int]:
    """Positions from one source to the next, as a fraction; the denominator is 0 where there is
    nothing but one source."""
    return (max(size - 1, 1), sources - 1) if align_corners else (size, sources)


def plan(logits: Tensor, height: int, width: int, align_corners: bool) -> Plan:
    """The launch for an image of this height and width."""
    logits, channels_last = dense(logits)
    _, classes, rows, cols = logits.shape
    positions, sources = upsampling(height, rows, align_corners)
    between = height if sources == 0 else triton.cdiv(positions, sources)
    # Where classes are innermost in memory, 16 are 32 or 64 bytes, which threads read together; the
    # 19 of Cityscapes or 21 of VOC fill blocks of 8 better. Else neighbouring threads take columns.
    block_k = 4 if not channels_last else 8 if classes <= 24 else 16
    block_r = next_power_of_2(min(between, _MOST_ROWS))
    block_w = next_power_of_2(min(width, _TILE_ELEMENTS // (block_k * block_r)))
    # Of 150 classes it is 2. Triton itself finds out whether 16 divides the number, nothing less.
    divisor = width_divisor(classes) if channels_last else 1
    constants = {
        "ALIGN_CORNERS": align_corners,
        "CHANNELS_LAST": channels_last,
        "LONG_AXES": bool(max(rows * height, cols * width) >= _INT32_PRODUCT),
        "CLASS_DIVISOR": divisor,
        "BLOCK_K": block_k,
        "BLOCK_R": block_r,
        "BLOCK_W": block_w,
    }
    sizes = (classes // divisor, rows, cols, height, width)
    return Plan(logits, channels_last, sizes, constants)

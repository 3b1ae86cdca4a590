"""What launches of upsample_argmax, upsample_softmax and upsample_cross_entropy share: how programs
share an image. The kernels' part is jit/common/upsample_tiles.py."""

from typing import NamedTuple

import triton
from torch import Tensor

from .launch import ENOUGH_PROGRAMS, dense, next_power_of_2, width_divisor

# Numbers of a tile that a program holds: 32 for each of 128 threads.
_TILE_NUMBERS = 4096
# What columns of a program are a multiple of where they are no power of two: of the usual eightfold
# upsampling, its first is then at a source.
_COLUMN_UNIT = 8
# Columns of a program at least, where small batches ask for more programs.
_LEAST_COLUMNS = 64
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

    def block_w(self) -> int:
        block_w = self.constants["BLOCK_W"]
        assert isinstance(block_w, int)
        return block_w

    def grid(self, tile_width: int | None = None) -> tuple[int]:
        """One program for every image, row of logits and ``tile_width`` columns of the image, else
        BLOCK_W."""
        _, rows, _, _, width = self.sizes
        tile_width = self.block_w() if tile_width is None else tile_width
        return (self.logits.shape[0] * rows * triton.cdiv(width, tile_width),)

    def tile_width(self) -> int:
        """Columns of a program: BLOCK_W or fewer, so that all have about as many and that there
        are enough programs."""
        _, rows, _, _, width = self.sizes
        needed = triton.cdiv(ENOUGH_PROGRAMS, self.logits.shape[0] * rows)
        tiles = max(
            triton.cdiv(width, self.block_w()), min(needed, triton.cdiv(width, _LEAST_COLUMNS))
        )
        return _COLUMN_UNIT * triton.cdiv(triton.cdiv(width, tiles), _COLUMN_UNIT)


def upsampling(size: int, sources: int, align_corners: bool) -> tuple[int, int]:
    """Positions from one source to the next, as a fraction; the denominator is 0 where there is
    nothing but one source."""
    return (max(size - 1, 1), sources - 1) if align_corners else (size, sources)


def plan(logits: Tensor, height: int, width: int, align_corners: bool, *, numbers: int = 4) -> Plan:
    """The launch for an image of this height and width, whose programs hold so many numbers of each
    element of a tile: a power of two up to 4."""
    logits, channels_last = dense(logits)
    _, classes, rows, cols = logits.shape
    positions, sources = upsampling(height, rows, align_corners)
    between = height if sources == 0 else triton.cdiv(positions, sources)
    # Where classes are innermost in memory, 16 are 32 or 64 bytes, which threads read together; the
    # 19 of Cityscapes or 21 of VOC fill blocks of 8 better. Else neighbouring threads take columns.
    block_k = numbers if not channels_last else 8 if classes <= 24 else 16
    block_r = next_power_of_2(min(between, _MOST_ROWS))
    block_w = next_power_of_2(min(width, _TILE_NUMBERS // (numbers * block_k * block_r)))
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

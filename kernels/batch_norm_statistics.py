"""The statistics of batch_norm_relu in Triton: what its ops call, and how its launches are cut; the
kernels are in jit/batch_norm_statistics.py.

Maps, running statistics and the form of statistics are those of batch_norm_relu.py.
"""

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from .jit.batch_norm_statistics import (
    merge_moments_kernel,
    merge_statistics_kernel,
    moments_kernel,
)
from .launch import (
    column_block,
    launches_on_tensor_device,
    next_power_of_2,
    width_divisor,
    wrap_triton,
)

# Bytes of a tile: four loads of 16 bytes of each of 128 threads, which keep two numbers of each
# element for the moments. Backward loads twice as many maps.
FORWARD_BYTES = 8192
BACKWARD_BYTES = 4096
# A single load of each thread, where larger tiles would be too few.
_LEAST_BYTES = 2048
# A large GPU has 132 multiprocessors, and four programs on each leave 128 registers to a thread.
# Kernels that sum have no more programs than that: a single program then adds what they leave.
_PROGRAMS = 132 * 4
# Channels whose sums a program adds: 16 bytes of each of up to 528 programs.
ADDED_CHANNELS = 4


class Tiles(NamedTuple):
    """How programs share a matrix [P, C]."""

    sizes: tuple[int, int]
    constants: dict[str, Any]
    channel_blocks: int
    pixel_blocks: int

    @classmethod
    def of(cls, x: Tensor, most_bytes: int) -> "Tiles":
        """Of a map, with at most so many bytes of it in a tile."""
        channels = x.shape[1]
        pixels = x.numel() // channels
        block_c = column_block(channels)
        channel_blocks = triton.cdiv(channels, block_c)
        pixel_bytes = block_c * x.element_size()
        block_p, least_p = most_bytes // pixel_bytes, _LEAST_BYTES // pixel_bytes
        while block_p > least_p and channel_blocks * triton.cdiv(pixels, block_p) < _PROGRAMS:
            block_p //= 2
        divisor = width_divisor(channels)
        return cls(
            (pixels, channels // divisor),
            {"CHANNEL_DIVISOR": divisor, "BLOCK_P": block_p, "BLOCK_C": block_c},
            channel_blocks,
            triton.cdiv(pixels, block_p),
        )

    def grid(self) -> tuple[int]:
        """A program for every tile."""
        return (self.channel_blocks * self.pixel_blocks,)

    def programs_of_sums(self) -> int:
        """Programs that share the pixels of a block of channels in a kernel that sums them."""
        return min(self.pixel_blocks, max(_PROGRAMS // self.channel_blocks, 1))


class _Running(NamedTuple):
    """Running mean, running variance and number of batches, where they are given."""

    mean: Tensor | None
    var: Tensor | None
    batches: Tensor | None

    def pointers(self, like: Tensor) -> list[Tensor]:
        """With a tensor that is not touched in the place of those that are not."""
        return [like if t is None else t for t in self]

    def constants(self) -> dict[str, bool]:
        names = ("HAS_MEAN", "HAS_VAR", "HAS_BATCHES")
        return {name: t is not None for name, t in zip(names, self, strict=True)}


@launches_on_tensor_device
def batch_norm_statistics(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    num_batches_tracked: Tensor | None,
    momentum: float,
) -> Tensor:
    """The statistics of x. Contiguous running ones ``[C]`` are moved towards them in place, and the
    number of batches, int64 ``[]``, goes up by one."""
    channels = x.shape[1]
    if x.numel() == 0:
        return x.new_zeros(2 * channels + 1, dtype=torch.float32)
    tiles = Tiles.of(x, FORWARD_BYTES)
    programs = tiles.programs_of_sums()
    moments = x.new_empty((2, programs, channels), dtype=torch.float32)
    wrap_triton(moments_kernel)[(tiles.channel_blocks * programs,)](
        x, moments, *tiles.sizes, **tiles.constants
    )
    statistics = x.new_empty(2 * channels + 1, dtype=torch.float32)
    running = _Running(running_mean, running_var, num_batches_tracked)
    wrap_triton(merge_moments_kernel)[(triton.cdiv(channels, ADDED_CHANNELS),)](
        x,
        moments,
        statistics,
        *running.pointers(moments),
        *tiles.sizes,
        programs,
        momentum,
        BLOCK_R=next_power_of_2(programs),
        **running.constants(),
        **tiles.constants | {"BLOCK_C": ADDED_CHANNELS},
    )
    return statistics


@launches_on_tensor_device
def batch_norm_merge_statistics(
    parts: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    num_batches_tracked: Tensor | None,
    momentum: float,
) -> Tensor:
    """The statistics of all values together, of contiguous parts ``[parts, 2 C + 1]``; running ones
    are moved as by :func:`batch_norm_statistics`."""
    count, width = parts.shape
    channels = width // 2
    divisor = width_divisor(channels)
    statistics = parts.new_empty(width)
    running = _Running(running_mean, running_var, num_batches_tracked)
    wrap_triton(merge_statistics_kernel)[(max(triton.cdiv(channels, ADDED_CHANNELS), 1),)](
        parts,
        statistics,
        *running.pointers(parts),
        channels // divisor,
        count,
        momentum,
        CHANNEL_DIVISOR=divisor,
        BLOCK_R=next_power_of_2(count),
        BLOCK_C=ADDED_CHANNELS,
        **running.constants(),
    )
    return statistics

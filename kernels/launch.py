"""What launchers share: devices, memory formats of maps, and sizes that hold for every kernel."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def on_the_device_of_the_first(launcher: Callable[..., T]) -> Callable[..., T]:
    """Decorates a launcher whose first argument is a tensor: Triton launches on the current device,
    which may not be the tensors'."""

    @functools.wraps(launcher)
    def launch(first: Tensor, *args: Any, **kwargs: Any) -> T:
        if not torch.cuda.is_available():  # It is traced, or interpreted.
            return launcher(first, *args, **kwargs)
        with torch.cuda.device_of(first):
            return launcher(first, *args, **kwargs)

    return launch


def dense(x: Tensor) -> tuple[Tensor, bool]:
    """x ``[N, C, H, W]`` in a format that kernels read, and whether that is channels_last: x itself
    if it is contiguous or channels_last, else a contiguous copy."""
    if not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
        return x, True
    return x.contiguous(), False


def empty_map(like: Tensor, shape: tuple[int, int, int, int], channels_last: bool) -> Tensor:
    """A map of this shape ``[N, C, H, W]``, with dtype and device of ``like``."""
    batch, channels, height, width = shape
    if channels_last:
        return like.new_empty((batch, height, width, channels)).permute(0, 3, 1, 2)
    return like.new_empty(shape)


def column_block(width: int) -> int:
    """Columns of a program; 64 floats of 32 channels are 16 registers of each of 128 threads."""
    return 16 if width <= 16 else 32 if width <= 32 else 64


def width_divisor(width: int) -> int:
    """The power of two, at most 16, that divides the offset of every row of a contiguous map.
    Elements of 16 bits need 8 of it for accesses of 16 bytes."""
    return next(d for d in (16, 8, 4, 2, 1) if width % d == 0)

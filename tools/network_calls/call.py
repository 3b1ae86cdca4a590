"""A call of an op's launchers, and what calls are made of."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tools.cuda_launches import CudaLaunch

BATCH, CHANNELS, SIDE = 16, 2048, 60
REDUCTION, OUT_CHANNELS = 512, 512
CLASSES, SIZE = 150, 473
PYRAMID = (1, 2, 3, 6)
BINS = sum(b * b for b in PYRAMID)
# Of csrc/dtype.h.
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Addresses from which nothing reads where launches are only noted, on boundaries of 16 bytes: room
# for the largest tensor from each to the next.
_FIRST_ADDRESS = 1 << 44
ROOM = 1 << 30
_places = itertools.count()


@dataclass(frozen=True)
class Call:
    """Of one launcher, for maps of one type and memory format."""

    dtype: torch.dtype
    channels_last: bool
    op: str
    triton: Callable[[], object]
    cuda: Callable[[], list[CudaLaunch]] | None
    # Bytes that each kernel reads and writes, in the order of launches; every tensor counts once.
    # None where they are few.
    triton_bytes: tuple[int | None, ...]
    cuda_bytes: tuple[int | None, ...]
    elements: int
    element: str


# "cpu" where the kernels run.
device = "meta"


def empty(shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool = False) -> Tensor:
    """Of zeros if it has memory; it takes memory where it is written."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    if device == "meta":
        return torch.empty(shape, dtype=dtype, device=device, memory_format=memory_format)
    if not channels_last:
        return torch.zeros(shape, dtype=dtype, device=device)
    batch, channels, *rest = shape
    return torch.zeros((batch, *rest, channels), dtype=dtype, device=device).movedim(-1, 1)


def integers(*values: int) -> Any:
    return (ctypes.c_int64 * len(values))(*map(int, values))


def addresses(count: int) -> list[int]:
    """Of tensors, none of which was there before."""
    return [_FIRST_ADDRESS + next(_places) * ROOM for _ in range(count)]


def pointers(count: int) -> tuple[ctypes.c_void_p, ...]:
    return tuple(map(ctypes.c_void_p, addresses(count)))

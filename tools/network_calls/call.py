"""A call of an op's launchers, and what calls are made of."""

from __future__ import annotations

import ctypes
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
# An address that nothing reads, on a boundary of 16 bytes.
SOMEWHERE = 1 << 20


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


def empty(shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool = False) -> Tensor:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, device="meta", memory_format=memory_format)


def integers(*values: int) -> Any:
    return (ctypes.c_int64 * len(values))(*map(int, values))


def pointers(count: int) -> tuple[ctypes.c_void_p, ...]:
    return (ctypes.c_void_p(SOMEWHERE),) * count

"""Of maps of several sizes: the largest layer of UPerNet-ConvNeXt-T at 512×512."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from functools import partial

import torch

from pspfast.kernels import upsample_add
from tools.cuda_launches import CudaLaunch, cuda_launches
from tools.network_calls.call import (
    DTYPES,
    OUT_CHANNELS,
    Call,
    addresses,
    empty,
    integers,
    pointers,
)

MAP_SIDE = 128
LEVELS = (64, 32, 16)


def maps_calls(dtype: torch.dtype, channels_last: bool, batch: int) -> Iterator[Call]:
    call = partial(Call, dtype, channels_last)
    base = empty((batch, OUT_CHANNELS, MAP_SIDE, MAP_SIDE), dtype, channels_last)
    bias = empty((OUT_CHANNELS,), dtype)
    mixed = [empty((batch, side, side, 3, 3, OUT_CHANNELS), dtype) for side in LEVELS]
    sizes = [*LEVELS, *[0] * (8 - len(LEVELS))]
    number = DTYPES.index(dtype)
    problem = integers(
        *(batch, MAP_SIDE, MAP_SIDE, OUT_CHANNELS, 3, number, number),
        *(False, False, channels_last, True, len(LEVELS), *sizes, *sizes),
    )
    levels = (ctypes.c_void_p * len(LEVELS))(*addresses(len(LEVELS)))

    def cuda(part: str, *args: object) -> list[CudaLaunch]:
        return cuda_launches("upsample_maps", f"upsample_maps{part}", problem, *args)

    values = sum(level.nbytes for level in mixed)
    moved = (2 * base.nbytes + bias.nbytes + values,)
    yield call(
        "upsample_concat_conv2d, maps added",
        lambda: upsample_add.upsample_add_forward(
            mixed[0], base, mixed, bias, (MAP_SIDE, MAP_SIDE), False, False, True, channels_last
        ),
        lambda: cuda("", *pointers(2), levels, *pointers(1)),
        moved,
        moved,
        base.numel(),
        "of the result",
    )
    # Triton's launches are those of single levels.
    yield call(
        "upsample_concat_conv2d, maps added, backward",
        lambda: upsample_add.upsample_add_backward(
            base, [s for side in LEVELS for s in (side, side)], 3, False, False, dtype
        ),
        lambda: cuda("_backward", *pointers(1), levels),
        tuple(base.nbytes + level.nbytes for level in mixed),
        (base.nbytes + values,),
        base.numel(),
        "of the gradient",
    )

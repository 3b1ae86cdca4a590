"""Of the pyramid: pooled, and upsampled into the concatenation or into the head's convolution."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from pspfast.kernels import pyramid_pool, pyramid_upsample
from tools.cuda_launches import CudaLaunch, cuda_launches
from tools.network_calls.call import (
    BINS,
    CHANNELS,
    DTYPES,
    OUT_CHANNELS,
    PYRAMID,
    REDUCTION,
    SIDE,
    Call,
    empty,
    integers,
    pointers,
)


def pool_calls(dtype: torch.dtype, channels_last: bool, batch: int) -> Iterator[Call]:
    call = partial(Call, dtype, channels_last)
    x = empty((batch, CHANNELS, SIDE, SIDE), dtype, channels_last)
    pooled = empty((batch, CHANNELS, BINS), dtype)

    def cuda(backward: bool) -> list[CudaLaunch]:
        sizes = map(ctypes.c_int64, x.shape)
        options = (channels_last, DTYPES.index(dtype), integers(*PYRAMID), len(PYRAMID), backward)
        return cuda_launches("pyramid_pool", "pyramid_pool", *sizes, *options, *pointers(2))

    if channels_last:
        # A single image is cut into bands of rows, whose sums are few.
        one = x[:1]
        problem = (*map(ctypes.c_int64, one.shape), True, DTYPES.index(dtype))
        pyramid = (integers(*PYRAMID), len(PYRAMID), False)
        moved = (one.nbytes + pooled[:1].nbytes,)
        yield call(
            "pyramid_pool of one image",
            lambda: pyramid_pool.pyramid_pool_forward(one, PYRAMID),
            lambda: cuda_launches(*["pyramid_pool"] * 2, *problem, *pyramid, *pointers(2)),
            moved,
            (*moved, None),
            one.numel(),
            "of x",
        )
    moved = (x.nbytes + pooled.nbytes,)
    of_x = (moved, moved, x.numel(), "of x")
    yield call(
        "pyramid_pool",
        lambda: pyramid_pool.pyramid_pool_forward(x, PYRAMID),
        lambda: cuda(False),
        *of_x,
    )
    yield call(
        "pyramid_pool backward",
        lambda: pyramid_pool.pyramid_pool_backward(pooled, PYRAMID, SIDE, SIDE, channels_last),
        lambda: cuda(True),
        *of_x,
    )


def upsample_calls(dtype: torch.dtype, channels_last: bool, batch: int) -> Iterator[Call]:
    call = partial(Call, dtype, channels_last)

    def problem(map_channels: int, channels: int, kernel_size: int, batch: int = batch) -> Any:
        sum_levels = kernel_size == 3
        first = 0 if sum_levels else map_channels - len(PYRAMID) * channels
        sizes = (batch, SIDE, SIDE, map_channels, first, channels, kernel_size)
        options = (DTYPES.index(dtype), sum_levels, True, channels_last, sum_levels)
        # Room for eight levels.
        return integers(*sizes, *options, len(PYRAMID), *PYRAMID, 0, 0, 0, 0)

    def cuda(part: str, *args: Any) -> list[CudaLaunch]:
        return cuda_launches("upsample_maps", f"pyramid_upsample{part}", *args)

    base = empty((batch, OUT_CHANNELS, SIDE, SIDE), dtype, channels_last)
    bias = empty((OUT_CHANNELS,), dtype)
    mixed = empty((batch, BINS, 3, 3, OUT_CHANNELS), torch.float32)
    moved = (2 * base.nbytes + bias.nbytes + mixed.nbytes,)
    summed = problem(OUT_CHANNELS, OUT_CHANNELS, 3)
    yield call(
        "pyramid_conv2d, levels added",
        lambda: pyramid_upsample.pyramid_upsample_add_forward(
            base, mixed, bias, PYRAMID, True, True
        ),
        # The copied channels' pointer is null.
        lambda: cuda("", summed, *pointers(2), None, *pointers(2)),
        moved,
        moved,
        base.numel(),
        "of the result",
    )
    moved = (base.nbytes + mixed.nbytes,)
    yield call(
        "pyramid_conv2d, levels added, backward",
        lambda: pyramid_upsample.pyramid_upsample_add_backward(base, PYRAMID, True, 3),
        lambda: cuda("_backward", summed, *pointers(2)),
        moved,
        moved,
        base.numel(),
        "of the gradient",
    )
    # A single image is cut into segments of rows, whose sums are few.
    one = base[:1]
    moved = (one.nbytes + mixed[:1].nbytes,)
    summed_one = problem(OUT_CHANNELS, OUT_CHANNELS, 3, batch=1)
    yield call(
        "pyramid_conv2d, levels added, backward of one image",
        lambda: pyramid_upsample.pyramid_upsample_add_backward(one, PYRAMID, True, 3),
        lambda: cuda("_backward", summed_one, *pointers(2)),
        moved,
        (*moved, None),
        one.numel(),
        "of the gradient",
    )

    x = empty((batch, CHANNELS, SIDE, SIDE), dtype, channels_last)
    priors = empty((batch, REDUCTION, BINS), dtype)
    levels = empty((batch, len(PYRAMID) * REDUCTION, SIDE, SIDE), dtype, channels_last)
    out = empty((batch, CHANNELS + levels.shape[1], SIDE, SIDE), dtype, channels_last)
    # On CUDA, priors are float32 by then.
    values = priors.numel() * 4
    concatenated = problem(out.shape[1], REDUCTION, 1)
    yield call(
        "pyramid_concat",
        lambda: pyramid_upsample.pyramid_concat_forward(x, priors, PYRAMID, True),
        lambda: cuda("", concatenated, None, None, *pointers(3)),
        (x.nbytes + priors.nbytes + out.nbytes,),
        (2 * x.nbytes, values + levels.nbytes),
        out.numel(),
        "of the result",
    )
    yield call(
        "pyramid_concat backward",
        lambda: pyramid_upsample.pyramid_concat_backward(out, PYRAMID, True, REDUCTION),
        lambda: cuda("_backward", concatenated, *pointers(2)),
        (levels.nbytes + priors.nbytes,),
        (levels.nbytes + values,),
        levels.numel(),
        "of the levels' gradient",
    )

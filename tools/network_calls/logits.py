"""Of the loss and the labels."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from pspfast.kernels import upsample_argmax, upsample_cross_entropy, upsample_softmax
from tools.cuda_launches import CudaLaunch, cuda_launches, cuda_number
from tools.network_calls.call import (
    CLASSES,
    DTYPES,
    SIDE,
    SIZE,
    Call,
    empty,
    integers,
    pointers,
)


def logits_calls(
    dtype: torch.dtype, channels_last: bool, batch: int, classes: int = CLASSES
) -> Iterator[Call]:
    call = partial(Call, dtype, channels_last)
    logits = empty((batch, classes, SIDE, SIDE), dtype, channels_last)
    target = empty((batch, SIZE, SIZE), torch.int64)
    lse, labels = target.to(torch.float32), target.to(torch.uint8)
    probabilities = empty((batch, classes, SIZE, SIZE), torch.float32)
    sizes = (*logits.shape, SIZE, SIZE, True, channels_last, DTYPES.index(dtype))
    # Ignored label, and a label smoothing of zero.
    loss_problem, problem = integers(*sizes, 255, 0), integers(*sizes)
    uint8 = ctypes.c_int(0)
    pixels = (target.numel(), "of the labels")

    op = "upsample_cross_entropy"

    def cuda_loss(part: str, *args: Any) -> list[CudaLaunch]:
        return cuda_launches(op, f"{op}{part}", loss_problem, *args)

    # Two tensors, and no class weights.
    given = (*pointers(2), None)
    partials = cuda_number(op, f"{op}_partials", loss_problem)
    moved = (logits.nbytes + target.nbytes + lse.nbytes + labels.nbytes, None)
    yield call(
        op,
        lambda: upsample_cross_entropy.upsample_cross_entropy_forward(
            logits, target, None, 255, True, 0.0, torch.uint8, True
        ),
        lambda: [
            *cuda_loss("", *given, *pointers(1), uint8, *pointers(2)),
            *cuda_loss("_mean", ctypes.c_int64(partials), *pointers(4)),
        ],
        moved,
        moved,
        *pixels,
    )
    read = logits.nbytes + target.nbytes + lse.nbytes
    # Two sums in float32 for every logit.
    partial_sums = 2 * 4 * logits.numel()
    yield call(
        f"{op} backward",
        lambda: upsample_cross_entropy.upsample_cross_entropy_backward(
            lse[0, 0, 0], logits, target, None, lse, 255, True, 0.0
        ),
        lambda: cuda_loss("_backward", *given, *pointers(4)),
        (read + logits.nbytes,),
        (read + partial_sums, partial_sums + logits.nbytes),
        *pixels,
    )
    moved = (logits.nbytes + labels.nbytes,)
    argmax = (problem, *pointers(1), uint8, *pointers(1))
    yield call(
        "upsample_argmax",
        lambda: upsample_argmax.upsample_argmax(logits, SIZE, SIZE, True, torch.uint8),
        lambda: cuda_launches(*["upsample_argmax"] * 2, *argmax),
        moved,
        moved,
        *pixels,
    )
    moved = (logits.nbytes + 2 * probabilities.nbytes,)
    # Strides, not flipped, added, times 1.0, whose bits stand here.
    output = integers(*probabilities.stride(), False, True, 0x3FF << 52)
    yield call(
        "upsample_softmax, added",
        lambda: upsample_softmax.upsample_softmax_add(probabilities, logits, True, False, 1.0),
        lambda: cuda_launches(*["upsample_softmax"] * 2, problem, output, *pointers(2)),
        moved,
        moved,
        probabilities.numel(),
        "of the probabilities",
    )

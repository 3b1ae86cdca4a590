"""What PSPNet50 at 473×473, 150 classes and a batch of 16 asks of the GPU's launchers."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pspfast.kernels import (
    batch_norm_relu,
    batch_norm_statistics,
    dilated_conv2d,
    pyramid_pool,
    pyramid_upsample,
    upsample_argmax,
    upsample_cross_entropy,
    upsample_softmax,
)
from tools.cuda_launches import CudaLaunch, cuda_launches, cuda_number

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


def _empty(shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool = False) -> Tensor:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, device="meta", memory_format=memory_format)


def _integers(*values: int) -> Any:
    return (ctypes.c_int64 * len(values))(*map(int, values))


def _pointers(count: int) -> tuple[ctypes.c_void_p, ...]:
    return (ctypes.c_void_p(SOMEWHERE),) * count


def _pool_calls(dtype: torch.dtype, channels_last: bool) -> Iterator[Call]:
    call = partial(Call, dtype, channels_last)
    x = _empty((BATCH, CHANNELS, SIDE, SIDE), dtype, channels_last)
    pooled = _empty((BATCH, CHANNELS, BINS), dtype)

    def cuda(backward: bool) -> list[CudaLaunch]:
        sizes = map(ctypes.c_int64, x.shape)
        options = (channels_last, DTYPES.index(dtype), _integers(*PYRAMID), len(PYRAMID), backward)
        return cuda_launches("pyramid_pool", "pyramid_pool", *sizes, *options, *_pointers(2))

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


def _upsample_calls(dtype: torch.dtype, channels_last: bool) -> Iterator[Call]:
    call = partial(Call, dtype, channels_last)

    def problem(map_channels: int, channels: int, kernel_size: int) -> Any:
        sum_levels = kernel_size == 3
        first = 0 if sum_levels else map_channels - len(PYRAMID) * channels
        sizes = (BATCH, SIDE, SIDE, map_channels, first, channels, kernel_size)
        options = (DTYPES.index(dtype), sum_levels, True, channels_last, sum_levels)
        # Room for eight levels.
        return _integers(*sizes, *options, len(PYRAMID), *PYRAMID, 0, 0, 0, 0)

    def cuda(part: str, *args: Any) -> list[CudaLaunch]:
        return cuda_launches("pyramid_upsample", f"pyramid_upsample{part}", *args)

    base = _empty((BATCH, OUT_CHANNELS, SIDE, SIDE), dtype, channels_last)
    bias = _empty((OUT_CHANNELS,), dtype)
    mixed = _empty((BATCH, BINS, 3, 3, OUT_CHANNELS), torch.float32)
    moved = (2 * base.nbytes + bias.nbytes + mixed.nbytes,)
    summed = problem(OUT_CHANNELS, OUT_CHANNELS, 3)
    yield call(
        "pyramid_conv2d, levels added",
        lambda: pyramid_upsample.pyramid_upsample_add_forward(
            base, mixed, bias, PYRAMID, True, True
        ),
        # The copied channels' pointer is null.
        lambda: cuda("", summed, *_pointers(2), None, *_pointers(2)),
        moved,
        moved,
        base.numel(),
        "of the result",
    )
    moved = (base.nbytes + mixed.nbytes,)
    yield call(
        "pyramid_conv2d, levels added, backward",
        lambda: pyramid_upsample.pyramid_upsample_add_backward(base, PYRAMID, True, 3),
        lambda: cuda("_backward", summed, *_pointers(2)),
        moved,
        moved,
        base.numel(),
        "of the gradient",
    )

    x = _empty((BATCH, CHANNELS, SIDE, SIDE), dtype, channels_last)
    priors = _empty((BATCH, REDUCTION, BINS), dtype)
    levels = _empty((BATCH, len(PYRAMID) * REDUCTION, SIDE, SIDE), dtype, channels_last)
    out = _empty((BATCH, CHANNELS + levels.shape[1], SIDE, SIDE), dtype, channels_last)
    # On CUDA, priors are float32 by then.
    values = priors.numel() * 4
    concatenated = problem(out.shape[1], REDUCTION, 1)
    yield call(
        "pyramid_concat",
        lambda: pyramid_upsample.pyramid_concat_forward(x, priors, PYRAMID, True),
        lambda: cuda("", concatenated, None, None, *_pointers(3)),
        (x.nbytes + priors.nbytes + out.nbytes,),
        (2 * x.nbytes, values + levels.nbytes),
        out.numel(),
        "of the result",
    )
    yield call(
        "pyramid_concat backward",
        lambda: pyramid_upsample.pyramid_concat_backward(out, PYRAMID, True, REDUCTION),
        lambda: cuda("_backward", concatenated, *_pointers(2)),
        (levels.nbytes + priors.nbytes,),
        (levels.nbytes + values,),
        levels.numel(),
        "of the levels' gradient",
    )


def _logits_calls(dtype: torch.dtype, channels_last: bool) -> Iterator[Call]:
    call = partial(Call, dtype, channels_last)
    logits = _empty((BATCH, CLASSES, SIDE, SIDE), dtype, channels_last)
    target = _empty((BATCH, SIZE, SIZE), torch.int64)
    lse, labels = target.to(torch.float32), target.to(torch.uint8)
    probabilities = _empty((BATCH, CLASSES, SIZE, SIZE), torch.float32)
    sizes = (*logits.shape, SIZE, SIZE, True, channels_last, DTYPES.index(dtype))
    # Ignored label, and a label smoothing of zero.
    loss_problem, problem = _integers(*sizes, 255, 0), _integers(*sizes)
    uint8 = ctypes.c_int(0)
    pixels = (target.numel(), "of the labels")

    op = "upsample_cross_entropy"

    def cuda_loss(part: str, *args: Any) -> list[CudaLaunch]:
        return cuda_launches(op, f"{op}{part}", loss_problem, *args)

    # Two tensors, and no class weights.
    given = (*_pointers(2), None)
    partials = cuda_number(op, f"{op}_partials", loss_problem)
    moved = (logits.nbytes + target.nbytes + lse.nbytes + labels.nbytes, None)
    yield call(
        op,
        lambda: upsample_cross_entropy.upsample_cross_entropy_forward(
            logits, target, None, 255, True, 0.0, torch.uint8, True
        ),
        lambda: [
            *cuda_loss("", *given, *_pointers(1), uint8, *_pointers(2)),
            *cuda_loss("_mean", ctypes.c_int64(partials), *_pointers(4)),
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
        lambda: cuda_loss("_backward", *given, *_pointers(4)),
        (read + logits.nbytes,),
        (read + partial_sums, partial_sums + logits.nbytes),
        *pixels,
    )
    moved = (logits.nbytes + labels.nbytes,)
    argmax = (problem, *_pointers(1), uint8, *_pointers(1))
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
    output = _integers(*probabilities.stride(), False, True, 0x3FF << 52)
    yield call(
        "upsample_softmax, added",
        lambda: upsample_softmax.upsample_softmax_add(probabilities, logits, True, False, 1.0),
        lambda: cuda_launches(*["upsample_softmax"] * 2, problem, output, *_pointers(2)),
        moved,
        moved,
        probabilities.numel(),
        "of the probabilities",
    )


def _batch_norm_calls(dtype: torch.dtype, channels_last: bool) -> Iterator[Call]:
    """The end of a block of the first stage, on eight GPUs: the largest maps with a residual."""
    if not channels_last:
        return
    call = partial(Call, dtype, True)
    x = _empty((BATCH, 256, 119, 119), dtype, True)
    weight = _empty((256,), torch.float32)
    statistics, batches = _empty((2 * 256 + 1,), torch.float32), _empty((), torch.int64)
    arguments = (statistics, weight, weight, x, True, 1e-5)
    of_x = (x.numel(), "of the map")

    def forward() -> object:
        running = (weight, weight, batches, 0.1)
        batch_norm_statistics.batch_norm_statistics(x, *running)
        batch_norm_statistics.batch_norm_merge_statistics(statistics.repeat(8, 1), *running)
        return batch_norm_relu.batch_norm_relu(x, *arguments)

    yield call("batch_norm_relu", forward, None, (x.nbytes, None, None, 3 * x.nbytes), (), *of_x)
    yield call(
        "batch_norm_relu backward",
        lambda: batch_norm_relu.batch_norm_relu_backward(x, x, *arguments),
        None,
        (4 * x.nbytes, None, 3 * x.nbytes),
        (),
        *of_x,
    )


def _exact(triton: Callable[[], object]) -> Callable[[], object]:
    """The same where torch may not round float32 to TF32."""

    def run() -> object:
        with torch.backends.cudnn.flags(allow_tf32=False):
            return triton()

    return run


def _conv_calls(dtype: torch.dtype, channels_last: bool) -> Iterator[Call]:
    """The head's, over the map's channels: the largest layer."""
    if not channels_last:
        return  # The launchers' copies are channels_last.
    call = partial(Call, dtype, True)
    x = _empty((BATCH, CHANNELS, SIDE, SIDE), dtype, True)
    grad = _empty((BATCH, OUT_CHANNELS, SIDE, SIDE), dtype, True)
    weight = _empty((OUT_CHANNELS, CHANNELS, 3, 3), dtype, True)
    conv = dilated_conv2d
    launches = {
        "": partial(conv.dilated_conv2d, x, weight, None, 1, None, False),
        ", gradient of x": partial(conv.dilated_conv2d_grad_input, grad, weight, 1),
        ", gradient of the weight": partial(conv.dilated_conv2d_grad_weight, grad, x, 1),
    }
    for part, triton in launches.items():
        op = f"dilated_conv2d{part}"
        yield call(op, triton, None, (), (), 1, "")
        if dtype == torch.float32:
            yield call(f"{op}, not rounded", _exact(triton), None, (), (), 1, "")


def network_calls() -> list[Call]:
    return [
        call
        for calls in (_conv_calls, _batch_norm_calls, _pool_calls, _upsample_calls, _logits_calls)
        for channels_last in (True, False)
        for dtype in DTYPES
        for call in calls(dtype, channels_last)
    ]

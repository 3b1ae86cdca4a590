"""Of the convolutions, and of BatchNorm with what follows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from pspfast.kernels import batch_norm_relu, batch_norm_statistics, dilated_conv2d
from tools.network_calls.call import CHANNELS, OUT_CHANNELS, SIDE, Call, empty


def batch_norm_calls(dtype: torch.dtype, channels_last: bool, batch: int) -> Iterator[Call]:
    """The end of a block of the first stage, on eight GPUs: the largest maps with a residual."""
    if not channels_last:
        return
    call = partial(Call, dtype, True)
    x, residual, grad = (empty((batch, 256, 119, 119), dtype, True) for _ in range(3))
    weight = empty((256,), torch.float32)
    statistics, batches = empty((2 * 256 + 1,), torch.float32), empty((), torch.int64)
    arguments = (statistics, weight, weight, residual, True, 1e-5)
    of_x = (x.numel(), "of the map")

    def forward() -> object:
        running = (weight, weight, batches, 0.1)
        batch_norm_statistics.batch_norm_statistics(x, *running)
        batch_norm_statistics.batch_norm_merge_statistics(statistics.repeat(8, 1), *running)
        return batch_norm_relu.batch_norm_relu(x, *arguments)

    yield call("batch_norm_relu", forward, None, (x.nbytes, None, None, 3 * x.nbytes), (), *of_x)
    yield call(
        "batch_norm_relu backward",
        lambda: batch_norm_relu.batch_norm_relu_backward(grad, x, *arguments),
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


def conv_calls(dtype: torch.dtype, channels_last: bool, batch: int) -> Iterator[Call]:
    """The head's, over the map's channels: the largest layer."""
    if not channels_last:
        return  # The launchers' copies are channels_last.
    call = partial(Call, dtype, True)
    x = empty((batch, CHANNELS, SIDE, SIDE), dtype, True)
    grad = empty((batch, OUT_CHANNELS, SIDE, SIDE), dtype, True)
    weight = empty((OUT_CHANNELS, CHANNELS, 3, 3), dtype, True)
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

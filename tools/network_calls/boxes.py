"""Of the convolutions that chips with tensor descriptors choose besides, by timing."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from pspfast.kernels.dilated_conv2d import dilated_conv2d, dilated_conv2d_grad_input
from tools.network_calls.call import BATCH, CHANNELS, DTYPES, OUT_CHANNELS, SIDE, Call, empty


def box_calls() -> Iterator[Call]:
    """The head's, as pointers take it too."""
    for dtype in DTYPES:
        x = empty((BATCH, CHANNELS, SIDE, SIDE), dtype, True)
        grad = empty((BATCH, OUT_CHANNELS, SIDE, SIDE), dtype, True)
        weight = empty((OUT_CHANNELS, CHANNELS, 3, 3), dtype, True)
        forward = partial(dilated_conv2d, x, weight, None, 1, None, False, boxes=True)
        grad_input = partial(dilated_conv2d_grad_input, grad, weight, 1, boxes=True)
        for op, triton in {"": forward, ", gradient of x": grad_input}.items():
            yield Call(dtype, True, f"dilated_conv2d{op}", triton, None, (), (), 1, "")

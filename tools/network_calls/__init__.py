"""What PSPNet50 at 473×473, 150 classes and a batch of 16 asks of the GPU's launchers, and the
largest layer of UPerNet at 512×512."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from tools.network_calls.call import BATCH, CLASSES, DTYPES, Call
from tools.network_calls.layers import batch_norm_calls, conv_calls
from tools.network_calls.logits import logits_calls
from tools.network_calls.maps import maps_calls
from tools.network_calls.pyramid import pool_calls, upsample_calls

__all__ = ["DTYPES", "Call", "network_calls"]


def network_calls(
    batch: int = BATCH, dtypes: Sequence[torch.dtype] = DTYPES, classes: int = CLASSES
) -> list[Call]:
    return [
        call
        for calls in (
            conv_calls,
            batch_norm_calls,
            pool_calls,
            upsample_calls,
            maps_calls,
            partial(logits_calls, classes=classes),
        )
        for channels_last in (True, False)
        for dtype in dtypes
        for call in calls(dtype, channels_last, batch)
    ]

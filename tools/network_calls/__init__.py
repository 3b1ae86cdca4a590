"""What PSPNet50 at 473×473, 150 classes and a batch of 16 asks of the GPU's launchers, and the
largest layer of UPerNet at 512×512."""

from __future__ import annotations

from tools.network_calls.call import BATCH, DTYPES, Call
from tools.network_calls.layers import batch_norm_calls, conv_calls
from tools.network_calls.logits import logits_calls
from tools.network_calls.maps import maps_calls
from tools.network_calls.pyramid import pool_calls, upsample_calls

__all__ = ["DTYPES", "Call", "network_calls"]


def network_calls(batch: int = BATCH) -> list[Call]:
    return [
        call
        for calls in (
            conv_calls,
            batch_norm_calls,
            pool_calls,
            upsample_calls,
            maps_calls,
            logits_calls,
        )
        for channels_last in (True, False)
        for dtype in DTYPES
        for call in calls(dtype, channels_last, batch)
    ]

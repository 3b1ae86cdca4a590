"""Memory formats, dtypes and alignments of maps, for tests in Triton's interpreter."""

import pytest
import torch
from torch import Tensor

FLOAT, HALF, BFLOAT = torch.float32, torch.float16, torch.bfloat16

every_dtype = pytest.mark.parametrize("dtype", [FLOAT, HALF, BFLOAT], ids=str)
both_alignments = pytest.mark.parametrize("align_corners", [False, True], ids=["", "align_corners"])
both_formats = pytest.mark.parametrize(
    "channels_last", [False, True], ids=["contiguous", "channels_last"]
)


def as_given(x: Tensor, channels_last: bool) -> Tensor:
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if channels_last else x

"""Cases of upsample_cross_entropy for its tests in Triton's interpreter."""

from dataclasses import dataclass

import torch
from maps import as_given
from torch import Tensor

IGNORED = 255


@dataclass(frozen=True)
class Case:
    batch: int
    classes: int
    source: tuple[int, int]
    size: tuple[int, int]
    dtype: torch.dtype = torch.float32
    smoothing: float = 0.0
    weighted: bool = False


def some_logits(case: Case, channels_last: bool = False, scale: float = 1.0) -> Tensor:
    x = (scale * torch.randn(case.batch, case.classes, *case.source)).to(case.dtype)
    return as_given(x, channels_last)


def some_target(case: Case) -> Tensor:
    """Classes at random; about every fifth pixel is ignored, but the first is not."""
    shape = (case.batch, *case.size)
    target = torch.randint(case.classes, shape)
    target[torch.rand(shape) < 0.2] = IGNORED
    target[0, 0, 0] = 0
    return target


def assert_exact_to_rounding(got: Tensor, expected: Tensor) -> None:
    # The interpreter truncates to bfloat16.
    half_ulps = 2 if got.dtype == torch.bfloat16 else 1
    rounding = 0.51 * half_ulps * torch.finfo(got.dtype).eps
    # Of one class the gradient is 0, a difference of numbers of about 1.
    scale = max(expected.abs().max().item(), 0.1)
    torch.testing.assert_close(
        got.double(), expected.detach(), rtol=max(rounding, 1e-6), atol=1e-6 * scale
    )

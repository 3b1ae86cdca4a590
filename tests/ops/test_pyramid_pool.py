import os
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from instruction_sets import at_every_isa
from op_tester import OpTester, assert_close, exact_dtype, with_reference
from torch import Tensor

from pspfast.ops import pyramid_pool

BINS = (1, 2, 3, 6)


def oracle(x: Tensor, bins: tuple[int, ...]) -> Tensor:
    return torch.cat([F.adaptive_avg_pool2d(x, b).flatten(2) for b in bins], dim=2)


class TestPyramidPool(OpTester):
    cases: ClassVar = [
        ([(2, 3, 4, 5)], (BINS,)),
        ([(1, 2, 7, 3)], ((3, 2),)),
        ([(2, 37, 12, 12)], (BINS,)),
        ([(1, 530, 13, 60)], (BINS,)),
        ([(2, 17, 61, 47)], (BINS,)),
        ([(1, 16, 16, 16)], ((1, 2, 4, 8, 16),)),
        ([(1, 33, 1, 1)], (BINS,)),
        ([(3, 1, 1, 97)], ((1, 7, 8),)),
        ([(1, 4, 130, 129)], ((1, 63),)),
        ([(0, 4, 8, 8)], (BINS,)),
    ]
    overloads: ClassVar = [
        (torch.ops.pspfast.pyramid_pool, [(2, 3, 7, 5)], (BINS,)),
        (torch.ops.pspfast.pyramid_pool_backward, [(2, 3, 50)], (BINS, 7, 5, False)),
        (torch.ops.pspfast.pyramid_pool_backward, [(2, 3, 50)], (BINS, 7, 5, True)),
    ]

    def op(self, *args: Any) -> Tensor:
        return pyramid_pool(*args)

    def reference(self, *args: Any) -> Tensor:
        return oracle(*args)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    size=st.tuples(*[st.integers(1, 40)] * 2),
    bins=st.lists(st.integers(1, 12), min_size=1, max_size=5),
    channels=st.integers(1, 40),
    channels_last=st.booleans(),
)
def test_any_size_and_any_bins(
    device: torch.device,
    size: tuple[int, int],
    bins: list[int],
    channels: int,
    channels_last: bool,
) -> None:
    x = torch.randn(2, channels, *size).to(device, exact_dtype(device))
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    ours, expected = pyramid_pool(x, bins), oracle(x, tuple(bins))
    assert_close(ours, expected)
    grad = torch.randn_like(expected)
    assert_close(torch.autograd.grad(ours, x, grad), torch.autograd.grad(expected, x, grad))


def test_no_channels(device: torch.device) -> None:
    x = torch.zeros(2, 0, 8, 8, device=device, requires_grad=True)
    pooled = pyramid_pool(x, BINS)
    assert pooled.shape == (2, 0, 50)
    pooled.sum().backward()
    assert x.grad.shape == x.shape


def test_pooled_order_in_memory_follows_the_map(device: torch.device) -> None:
    x = torch.randn(2, 3, 8, 8, device=device)
    assert pyramid_pool(x, BINS).stride() == (150, 50, 1)
    x = x.contiguous(memory_format=torch.channels_last)
    assert pyramid_pool(x, BINS).stride() == (150, 1, 3)


@at_every_isa
def test_conversions_of_every_isa(isa: str) -> None:
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": isa}
    script = Path(__file__).with_name("isa.py")
    subprocess.run([sys.executable, script], env=environment, check=True)


BAD_INPUTS = [
    (torch.zeros(3, 8, 8), BINS, ValueError, r"x: expected \[N, C, H, W\], got shape \[3, 8, 8\]"),
    (torch.zeros(1, 3, 0, 8), BINS, ValueError, "x: expected H and W of 1 to 8388608, got 0 and 8"),
    (torch.zeros(1, 3, 8, 8), (), ValueError, "bins: expected 1 to 8 levels, got 0"),
    (torch.zeros(1, 3, 8, 8), (1,) * 9, ValueError, "bins: expected 1 to 8 levels, got 9"),
    (torch.zeros(1, 3, 8, 8), (2, 0), ValueError, "bins: expected each of 1 to 64, got 0"),
    (torch.zeros(1, 3, 8, 8), (65,), ValueError, "bins: expected each of 1 to 64, got 65"),
    (torch.zeros(1, 3, 8, 8), (40, 30), ValueError, "bins: expected a sum of at most 64, got 70"),
    (torch.zeros(1, 3, 8, 8, dtype=torch.long), BINS, TypeError, "x: expected float32"),
]


@with_reference
@pytest.mark.parametrize(("x", "bins", "error", "message"), BAD_INPUTS, ids=lambda v: str(v)[:20])
def test_errors(
    device: torch.device,
    x: Tensor,
    bins: tuple[int, ...],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=f"^pyramid_pool: {message}"):
        pyramid_pool(x.to(device), bins)


def test_backward_errors() -> None:
    backward = torch.ops.pspfast.pyramid_pool_backward
    with pytest.raises(ValueError, match=r"grad: expected \[N, C, S\], got shape \[2, 50\]"):
        backward(torch.zeros(2, 50), BINS, 8, 8, False)
    with pytest.raises(ValueError, match="grad: expected S = 50 bins, got 49"):
        backward(torch.zeros(2, 3, 49), BINS, 8, 8, False)

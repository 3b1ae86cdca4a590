from typing import Any, ClassVar

import pytest
import torch
from concatenation import concatenation as oracle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from op_tester import OpTester, assert_close, exact_dtype, with_reference
from torch import Tensor

from pspfast.ops import pyramid_concat

BINS = (1, 2, 3, 6)


class TestPyramidConcat(OpTester):
    cases: ClassVar = [
        ([(2, 2, 4, 3), (2, 1, 13)], ((2, 3), True)),
        ([(1, 1, 3, 5), (1, 3, 5)], ((1, 2), False)),
        ([(2, 16, 12, 12), (2, 37, 50)], (BINS, True)),
        ([(1, 3, 61, 47), (1, 64, 50)], (BINS, False)),
        ([(1, 5, 2, 131), (1, 17, 50)], (BINS, True)),
        ([(1, 600, 7, 6), (1, 260, 50)], (BINS, False)),
        ([(2, 3, 1, 1), (2, 4, 50)], (BINS, True)),
        ([(1, 3, 1, 9), (1, 4, 50)], (BINS, False)),
        ([(1, 2, 30, 29), (1, 2, 63 * 63)], ((63,), True)),
        ([(0, 4, 8, 8), (0, 2, 50)], (BINS, True)),
        ([(2, 0, 8, 8), (2, 3, 50)], (BINS, True)),
    ]
    overloads: ClassVar = [
        (torch.ops.pspfast.pyramid_concat, [(2, 3, 7, 5), (2, 4, 50)], (BINS, True)),
        (torch.ops.pspfast.pyramid_concat_backward, [(2, 19, 7, 5)], (BINS, True, 4)),
    ]

    def op(self, *args: Any) -> Tensor:
        return pyramid_concat(*args)

    def reference(self, *args: Any) -> Tensor:
        return oracle(*args)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    size=st.tuples(*[st.integers(1, 40)] * 2),
    bins=st.lists(st.integers(1, 12), min_size=1, max_size=5),
    channels=st.tuples(*[st.integers(1, 40)] * 2),
    align_corners=st.booleans(),
    channels_last=st.booleans(),
)
def test_any_size_and_any_bins(
    device: torch.device,
    size: tuple[int, int],
    bins: list[int],
    channels: tuple[int, int],
    align_corners: bool,
    channels_last: bool,
) -> None:
    dtype = exact_dtype(device)
    x = torch.randn(2, channels[0], *size).to(device, dtype)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    priors = torch.randn(2, channels[1], sum(b * b for b in bins)).to(device, dtype)
    inputs = x.requires_grad_(), priors.requires_grad_()
    ours = pyramid_concat(x, priors, bins, align_corners)
    expected = oracle(x, priors, tuple(bins), align_corners)
    assert_close(ours, expected)
    grad = torch.randn_like(expected)
    assert_close(
        torch.autograd.grad(ours, inputs, grad), torch.autograd.grad(expected, inputs, grad)
    )


def test_no_channels_of_priors(device: torch.device) -> None:
    x = torch.randn(2, 3, 8, 8, device=device)
    priors = torch.zeros(2, 0, 50, device=device, requires_grad=True)
    got = pyramid_concat(x.requires_grad_(), priors, BINS)
    assert torch.equal(got, x)
    got.sum().backward()
    assert priors.grad.shape == priors.shape


@pytest.mark.parametrize("frozen", ["x", "priors"])
def test_either_gradient_alone(frozen: str, device: torch.device) -> None:
    x = torch.randn(2, 3, 7, 5, device=device, requires_grad=frozen != "x")
    priors = torch.randn(2, 4, 50, device=device, requires_grad=frozen != "priors")
    wanted = priors if frozen == "x" else x
    grad = torch.randn(2, 19, 7, 5, device=device)
    assert_close(
        torch.autograd.grad(pyramid_concat(x, priors, BINS), wanted, grad),
        torch.autograd.grad(oracle(x, priors, BINS, True), wanted, grad),
    )


def test_autocast_takes_the_wider_dtype(device: torch.device) -> None:
    x, priors = torch.randn(1, 2, 5, 5).to(device), torch.randn(1, 2, 5).bfloat16().to(device)
    with torch.autocast(device.type, torch.bfloat16):
        got = pyramid_concat(x, priors, (1, 2))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, oracle(x, priors.float(), (1, 2), True))


X, PRIORS = torch.zeros(1, 3, 8, 8), torch.zeros(1, 2, 50)
BAD_INPUTS = [
    (X[0], PRIORS, BINS, ValueError, r"x: expected \[N, C, H, W\], got shape \[3, 8, 8\]"),
    (X.long(), PRIORS, BINS, TypeError, "x: expected float32"),
    (X, PRIORS, (), ValueError, "bins: expected 1 to 8 levels, got 0"),
    (X, PRIORS, (2, 0), ValueError, "bins: expected each of 1 to 64, got 0"),
    (X, PRIORS[0], BINS, ValueError, r"priors: expected \[N, R, S\] with N = 1 and S = 50, got"),
    (X, PRIORS, (1, 2), ValueError, r"priors: .* S = 5, got shape \[1, 2, 50\]"),
    (X[:0], PRIORS, BINS, ValueError, "priors: .* N = 0"),
    (X, PRIORS.double(), BINS, TypeError, "priors: expected .*loat.* as x, got .*ouble|float64"),
]


@with_reference
@pytest.mark.parametrize("bad", BAD_INPUTS, ids=lambda bad: bad[4][:20])
def test_errors(device: torch.device, bad: tuple[Any, ...]) -> None:
    x, priors, bins, error, message = bad
    with pytest.raises(error, match=f"^pyramid_concat: {message}"):
        pyramid_concat(x.to(device), priors.to(device), bins)


def test_backward_errors() -> None:
    backward = torch.ops.pspfast.pyramid_concat_backward
    with pytest.raises(ValueError, match="grad: expected at least 16 channels, got 15"):
        backward(torch.zeros(2, 15, 8, 8), BINS, True, 4)
    with pytest.raises(ValueError, match=r"grad: expected \[N, C, H, W\], got shape \[8, 8\]"):
        backward(torch.zeros(8, 8), BINS, True, 4)

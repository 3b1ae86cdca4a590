"""The CUDA kernels of pyramid_upsample on the emulation, against float64 PyTorch."""

import ctypes
import itertools
from collections.abc import Callable

import pytest
import torch
from emulated_pyramid_upsample import (
    CASES,
    DTYPES,
    FORMATS,
    Case,
    Upsample,
    assert_exact_to_rounding,
    concat,
    conv,
    reference,
)


@pytest.fixture
def upsample(emulated: Callable[[str], ctypes.CDLL]) -> Upsample:
    return Upsample(emulated("upsample_maps"))


@FORMATS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward_and_backward(
    upsample: Upsample, case: Case, dtype: torch.dtype, channels_last: bool
) -> None:
    values = torch.randn(case.values_size)
    exact_values = values.double().requires_grad_()
    expected = reference(case, exact_values)
    grad_map = torch.randn(case.map_size).to(dtype)
    expected.backward(grad_map[:, case.first_channel :].double())
    assert exact_values.grad is not None
    x = torch.randn(case.batch, case.first_channel, case.height, case.width).to(dtype)
    copied = x if case.first_channel else None
    got = upsample.forward(case, values, dtype, channels_last, copied=copied)
    assert torch.equal(got[:, : case.first_channel], x)
    assert_exact_to_rounding(got[:, case.first_channel :], expected.detach(), scale=4)
    got = upsample.backward(case, grad_map, channels_last)
    # A bin gathers up to n random numbers: n roundings of partial sums of about the root of n.
    assert_exact_to_rounding(got, exact_values.grad, scale=max(4, case.height * case.width / 12))


@FORMATS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
# More channels than a block takes; without and with vectors of contiguous pixels.
@pytest.mark.parametrize(
    "case", [conv(2, 24, 5, 7, bins=(2, 3)), conv(2, 21, 6, 12, bins=(2, 3))], ids=str
)
def test_epilogue(upsample: Upsample, case: Case, dtype: torch.dtype, channels_last: bool) -> None:
    values = torch.randn(case.values_size)
    upsampled = reference(case, values.double())
    base = torch.randn(case.map_size).to(dtype)
    base[1, 2, 3, 4] = torch.nan
    bias = torch.randn(case.channels).to(dtype)
    bias[5] = torch.nan
    for has_base, has_bias, relu in itertools.product([False, True], repeat=3):
        expected = upsampled.clone()
        if has_base:
            expected += base.double()
        if has_bias:
            expected += bias.double()[:, None, None]
        if relu:
            expected = expected.relu()  # keeps NaN
        got = upsample.forward(
            case,
            values,
            dtype,
            channels_last,
            base=base if has_base else None,
            bias=bias if has_bias else None,
            relu=relu,
        )
        rounding = 0.51 * torch.finfo(dtype).eps
        torch.testing.assert_close(
            got.double(), expected, rtol=max(rounding, 1e-6), atol=8e-6, equal_nan=True
        )


@FORMATS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shift", [1, 3])
def test_any_alignment_gives_the_same_bits(
    upsample: Upsample, shift: int, dtype: torch.dtype, channels_last: bool
) -> None:
    for case in (conv(1, 8, 13, 11), concat(2, 8, 13, 11, x=8), conv(1, 9, 6, 12)):
        values, grad_map = torch.randn(case.values_size), torch.randn(case.map_size).to(dtype)
        given = {
            "base": torch.randn(case.map_size).to(dtype) if case.sum_levels else None,
            "bias": torch.randn(case.channels).to(dtype) if case.sum_levels else None,
            "copied": None if case.sum_levels else torch.randn(2, 8, 13, 11).to(dtype),
        }
        aligned, other = (
            upsample.forward(case, values, dtype, channels_last, **given, shift=s)
            for s in (0, shift)
        )
        assert torch.equal(other, aligned)
        aligned, other = (
            upsample.backward(case, grad_map, channels_last, shift=s) for s in (0, shift)
        )
        assert torch.equal(other, aligned)


@FORMATS
def test_repeats_bit_for_bit(upsample: Upsample, channels_last: bool) -> None:
    case = conv(2, 8, 13, 11)
    values, grad_map = torch.randn(case.values_size), torch.randn(case.map_size)
    first, second = (upsample.forward(case, values, torch.float32, channels_last) for _ in range(2))
    assert torch.equal(first, second)
    first, second = (upsample.backward(case, grad_map, channels_last) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("sanitizers", ["thread", "address,undefined"])
def test_sanitizers_are_silent(sanitized: Callable[..., str], sanitizers: str) -> None:
    assert sanitized("upsample_maps_main", sanitizers) == ""

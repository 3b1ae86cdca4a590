"""The Triton kernels of pyramid_upsample in the interpreter, against float64 PyTorch."""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from maps import BFLOAT, FLOAT, HALF, as_given, both_alignments, both_formats
from torch import Tensor

from pspfast.kernels import pyramid_upsample
from pspfast.kernels.pyramid_upsample import (
    pyramid_concat_backward,
    pyramid_concat_forward,
    pyramid_upsample_add_backward,
    pyramid_upsample_add_forward,
)

PYRAMID = (1, 2, 3, 6)


@dataclass(frozen=True)
class Case:
    batch: int
    channels: int  # of every level
    height: int
    width: int
    bins: tuple[int, ...] = PYRAMID
    dtype: torch.dtype = FLOAT
    kernel_size: int = 3
    map_channels: int = 3  # before the levels of a concatenation

    @property
    def bin_count(self) -> int:
        return sum(b * b for b in self.bins)

    @property
    def size(self) -> tuple[int, int]:
        return self.height, self.width


# The interpreter takes its time: few rows, few programs.
ADD_CASES = [
    Case(2, 3, 4, 7),
    Case(1, 3, 3, 5, dtype=HALF),
    Case(1, 3, 3, 5, dtype=BFLOAT),
    Case(2, 3, 4, 7, kernel_size=1),
    Case(1, 17, 2, 3, kernel_size=1, dtype=BFLOAT),
    # More channels than a program holds, forward 32, backward 32 and with taps 16.
    Case(2, 65, 2, 3, bins=(2,)),
    Case(1, 33, 2, 3, bins=(2,), kernel_size=1),
    # More columns than a program holds, 64.
    Case(2, 2, 2, 70, bins=(2, 3)),
    Case(1, 2, 2, 70, bins=(3,), dtype=HALF),
    # Single bins, which have the sums of another level, between others and alone.
    Case(1, 2, 3, 5, bins=(3, 1, 2, 1)),
    Case(1, 2, 3, 5, bins=(1, 1)),
    # As many levels and bins as there may be: fewer rows and columns than bins, several products.
    Case(1, 1, 2, 3, bins=(8, 7, 5, 4, 3, 2, 1, 34), kernel_size=1),
    Case(1, 1, 1, 2, bins=(64,), kernel_size=1),
    Case(2, 2, 1, 1, bins=(2, 1)),
    Case(1, 2, 1, 5, bins=(2, 3)),
    Case(1, 2, 5, 1, bins=(1, 3)),
    # The width that fills a block, and the first of the next size.
    Case(1, 1, 2, 16, bins=(3,)),
    Case(1, 1, 2, 17, bins=(3,)),
]
CONCAT_CASES = [
    Case(2, 3, 4, 7),
    Case(1, 3, 3, 5, dtype=HALF),
    Case(1, 3, 3, 5, dtype=BFLOAT),
    # More channels than a program holds, forward 64 and backward 32: of a level, of the map.
    Case(2, 65, 1, 3, bins=(1, 2)),
    Case(1, 5, 2, 3, bins=(2,), map_channels=18),
    # More columns than a program holds, 64.
    Case(2, 2, 2, 70, bins=(2, 3)),
    Case(1, 16, 1, 70, bins=(2,), dtype=HALF),
    # More columns of bins than a product takes, 16, and levels in between.
    Case(1, 1, 3, 2, bins=(3, 20, 17)),
    Case(1, 2, 1, 1, bins=(2, 1)),
    Case(1, 2, 1, 5, bins=(2, 3)),
    Case(1, 2, 5, 1, bins=(1, 3)),
    Case(1, 2, 3, 4, map_channels=0),
    # One channel, which both formats describe.
    Case(1, 2, 2, 3, bins=(1,), map_channels=1),
]


def upsampled_levels(values: Tensor, case: Case, align_corners: bool) -> list[Tensor]:
    """[N, C, H, W] of each level: values [N, S, k, k, C] interpolated, tap (ky, kx) moved by
    (k // 2 - ky, k // 2 - kx), zeros beside the map, and summed over taps."""
    k, (height, width) = values.shape[2], case.size
    levels = []
    for level, b in zip(values.split([b * b for b in case.bins], 1), case.bins, strict=True):
        total = values.new_zeros(values.shape[0], values.shape[4], height, width)
        for ky in range(k):
            for kx in range(k):
                bins = level[:, :, ky, kx].transpose(1, 2).unflatten(2, (b, b))
                tap = F.interpolate(bins, case.size, mode="bilinear", align_corners=align_corners)
                padded = F.pad(tap, [k // 2] * 4)
                total = total + padded[:, :, ky : ky + height, kx : kx + width]
        levels.append(total)
    return levels


def random(*shape: int, dtype: torch.dtype = FLOAT, channels_last: bool = False) -> Tensor:
    return as_given(torch.randn(shape).to(dtype), channels_last)


def assert_exact_to_rounding(got: Tensor, expected: Tensor, terms: int) -> None:
    """float32 sums of so many random numbers, rounded once to the dtype of the result."""
    # The interpreter truncates to bfloat16.
    half_ulps = 2 if got.dtype == BFLOAT else 1
    rounding = 0.51 * half_ulps * torch.finfo(got.dtype).eps
    # Every term has two weights and a sum behind it, of an ulp or two each.
    atol = 1e-6 * terms**0.5
    torch.testing.assert_close(got.double(), expected.detach(), rtol=max(rounding, 1e-6), atol=atol)


def assert_same_format(got: Tensor, given: Tensor) -> None:
    """Contiguous where both formats describe what was given, as in F.interpolate."""
    channels_last = not given.is_contiguous()
    order = got.movedim(1, -1) if channels_last else got
    assert order.is_contiguous()


@both_formats
@both_alignments
@pytest.mark.parametrize("case", ADD_CASES, ids=str)
def test_add(case: Case, align_corners: bool, channels_last: bool) -> None:
    shape = (case.batch, case.channels, *case.size)
    base = random(*shape, dtype=case.dtype, channels_last=channels_last)
    k = case.kernel_size
    mixed = random(case.batch, case.bin_count, k, k, case.channels)
    bias = random(case.channels, dtype=case.dtype)
    exact_mixed = mixed.double().requires_grad_()
    upsampled = sum(upsampled_levels(exact_mixed, case, align_corners))
    terms = len(case.bins) * k * k

    got = pyramid_upsample_add_forward(base, mixed, None, case.bins, align_corners, False)
    assert_exact_to_rounding(got, base.double() + upsampled, terms)
    assert got.dtype == case.dtype
    assert_same_format(got, base)
    got = pyramid_upsample_add_forward(base, mixed, bias, case.bins, align_corners, True)
    expected = base.double() + upsampled + bias.double().view(-1, 1, 1)
    assert_exact_to_rounding(got, expected.relu(), terms)

    grad = random(*shape, dtype=case.dtype, channels_last=channels_last)
    upsampled.backward(grad.double())
    got = pyramid_upsample_add_backward(grad, case.bins, align_corners, k)
    assert_exact_to_rounding(got, exact_mixed.grad, case.height * case.width)
    assert got.dtype == torch.float32
    assert got.is_contiguous()


@both_formats
def test_rows_of_a_program(channels_last: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above, maps are so small that a program of the addition has two rows, and one of the
    backward all rows of a bin. Here are eight rows and the one behind them, and segments, of which
    some have no row."""
    monkeypatch.setattr(pyramid_upsample, "ENOUGH_PROGRAMS", 1)
    test_add(Case(1, 3, 9, 3, bins=(3,)), True, channels_last)
    monkeypatch.setattr(pyramid_upsample, "ENOUGH_PROGRAMS", 99)
    monkeypatch.setattr(pyramid_upsample, "_SEGMENT_ROWS", 1)
    test_add(Case(1, 3, 7, 3, bins=(3,)), False, channels_last)
    test_concat(Case(1, 3, 7, 3, bins=(3,), dtype=HALF), False, channels_last)


@both_formats
@both_alignments
@pytest.mark.parametrize("case", CONCAT_CASES, ids=str)
def test_concat(case: Case, align_corners: bool, channels_last: bool) -> None:
    x = random(
        case.batch, case.map_channels, *case.size, dtype=case.dtype, channels_last=channels_last
    )
    priors = random(case.batch, case.channels, case.bin_count, dtype=case.dtype)
    if channels_last:
        # In memory as pyramid_pool leaves them.
        priors = priors.transpose(1, 2).contiguous().transpose(1, 2)
    exact_priors = priors.double().requires_grad_()
    values = exact_priors.transpose(1, 2)[:, :, None, None]
    upsampled = torch.cat(upsampled_levels(values, case, align_corners), dim=1)

    got = pyramid_concat_forward(x, priors, case.bins, align_corners)
    assert torch.equal(got[:, : case.map_channels], x)
    assert_exact_to_rounding(got[:, case.map_channels :], upsampled, 1)
    assert got.dtype == case.dtype
    assert_same_format(got, x)

    grad = random(*got.shape, dtype=case.dtype, channels_last=channels_last)
    upsampled.backward(grad[:, case.map_channels :].double())
    got = pyramid_concat_backward(grad, case.bins, align_corners, case.channels)
    assert_exact_to_rounding(got, exact_priors.grad, case.height * case.width)
    assert got.dtype == case.dtype


@pytest.mark.parametrize("dtype", [HALF, BFLOAT], ids=str)
def test_mixed_and_its_gradient_are_float32_beside_maps_of_16_bits(dtype: torch.dtype) -> None:
    """A sum of 1 and 2**-12, which 16 bits would round."""
    mixed = torch.full((1, 1, 1, 1, 3), 1 + 2**-12)
    base = torch.full((1, 3, 1, 2), -1.0, dtype=dtype)
    got = pyramid_upsample_add_forward(base, mixed, None, (1,), True, False)
    assert torch.equal(got, torch.full_like(base, 2**-12))
    grad = torch.tensor([1, 2**-12], dtype=dtype).expand(1, 3, 1, 2)
    assert torch.equal(pyramid_upsample_add_backward(grad, (1,), True, 1), mixed)


@pytest.mark.parametrize(("batch", "channels"), [(0, 2), (2, 0), (0, 0)])
def test_nothing_to_upsample(batch: int, channels: int) -> None:
    case = Case(batch, channels, 3, 4)
    base = torch.randn(batch, channels, *case.size)
    mixed = torch.randn(batch, case.bin_count, 3, 3, channels)
    got = pyramid_upsample_add_forward(base, mixed, None, case.bins, True, False)
    assert got.shape == base.shape
    assert pyramid_upsample_add_backward(base, case.bins, True, 3).shape == mixed.shape

    x = torch.randn(batch, case.map_channels, *case.size)
    priors = torch.randn(batch, channels, case.bin_count)
    got = pyramid_concat_forward(x, priors, case.bins, True)
    assert got.shape == (batch, case.map_channels + 4 * channels, *case.size)
    assert torch.equal(got[:, : case.map_channels], x)
    assert pyramid_concat_backward(got, case.bins, True, channels).shape == priors.shape


OTHER_STRIDES = Case(2, 3, 3, 4, bins=(1, 2))


def every_other(*shape: int) -> Tensor:
    return torch.randn(*shape[:-1], 2 * shape[-1])[..., ::2]


def test_add_takes_other_strides() -> None:
    case = OTHER_STRIDES
    base = every_other(case.batch, case.channels, *case.size)
    mixed = every_other(case.batch, case.bin_count, 3, 3, case.channels)
    bias = every_other(case.channels)
    got = pyramid_upsample_add_forward(base, mixed, bias, case.bins, True, False)
    upsampled = sum(upsampled_levels(mixed.double(), case, True))
    assert_exact_to_rounding(got, base.double() + upsampled + bias.view(-1, 1, 1), 18)
    assert got.is_contiguous()
    # As autograd gives it for the gradient of a sum.
    grad = torch.ones(()).expand(base.shape)
    got = pyramid_upsample_add_backward(grad, case.bins, True, 3)
    dense = pyramid_upsample_add_backward(grad.contiguous(), case.bins, True, 3)
    assert torch.equal(got, dense)


def test_concat_takes_other_strides() -> None:
    case = OTHER_STRIDES
    x = every_other(case.batch, 5, *case.size)
    priors = every_other(case.batch, case.channels, case.bin_count)
    got = pyramid_concat_forward(x, priors, case.bins, False)
    dense = pyramid_concat_forward(x.contiguous(), priors.contiguous(), case.bins, False)
    assert torch.equal(got, dense)
    assert got.is_contiguous()
    grad = torch.ones(()).expand(got.shape)
    got = pyramid_concat_backward(grad, case.bins, False, case.channels)
    dense = pyramid_concat_backward(grad.contiguous(), case.bins, False, case.channels)
    assert torch.equal(got, dense)


@pytest.mark.parametrize("relu", [False, True])
def test_nan_stays_where_it_is(relu: bool) -> None:
    case = OTHER_STRIDES
    base = torch.randn(case.batch, case.channels, *case.size)
    base[1, 2, 1, 3] = torch.nan
    mixed = torch.randn(case.batch, case.bin_count, 3, 3, case.channels)
    got = pyramid_upsample_add_forward(base, mixed, None, case.bins, True, relu)
    assert torch.equal(got.isnan(), base.isnan())


def test_a_sample_has_the_same_bits_in_any_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward, a program has two rows in the small batch, four in the large one. Backward, segments
    in both, though the large one has enough programs without."""
    monkeypatch.setattr(pyramid_upsample, "ENOUGH_PROGRAMS", 4)
    monkeypatch.setattr(pyramid_upsample, "_SEGMENT_ROWS", 2)
    case = Case(2, 2, 8, 7, bins=(3,))
    base = torch.randn(case.batch, case.channels, *case.size)
    mixed = torch.randn(case.batch, case.bin_count, 3, 3, case.channels)
    priors = torch.randn(case.batch, case.channels, case.bin_count)

    def results(sample: slice) -> list[Tensor]:
        out = pyramid_upsample_add_forward(
            base[sample], mixed[sample], None, case.bins, True, False
        )
        concat = pyramid_concat_forward(base[sample], priors[sample], case.bins, True)
        grad_mixed = pyramid_upsample_add_backward(base[sample], case.bins, True, 3)
        grad_priors = pyramid_concat_backward(concat, case.bins, True, case.channels)
        return [out, concat, grad_mixed, grad_priors]

    both = results(slice(0, 2))
    for again, alone, of_both in zip(results(slice(0, 2)), results(slice(1, 2)), both, strict=True):
        assert torch.equal(again, of_both)
        assert torch.equal(alone[0], of_both[1])

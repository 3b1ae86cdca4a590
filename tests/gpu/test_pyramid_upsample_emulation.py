"""The CUDA kernels of pyramid_upsample on the emulation, against float64 PyTorch."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
PYRAMID = (1, 2, 3, 6)
# As many levels and bins as there may be.
LARGEST = (8, 7, 5, 4, 3, 2, 1, 34)


@dataclass(frozen=True)
class Case:
    """What is upsampled: values [N, S, k, k, channels]; the map has the first channels besides."""

    batch: int
    channels: int
    height: int
    width: int
    bins: tuple[int, ...] = PYRAMID
    kernel_size: int = 1
    sum_levels: bool = False
    first_channel: int = 0
    align_corners: bool = False

    @property
    def map_channels(self) -> int:
        return self.first_channel + self.channels * (1 if self.sum_levels else len(self.bins))

    @property
    def map_size(self) -> torch.Size:
        return torch.Size((self.batch, self.map_channels, self.height, self.width))

    @property
    def values_size(self) -> torch.Size:
        bin_count = sum(b * b for b in self.bins)
        return torch.Size((self.batch, bin_count, *[self.kernel_size] * 2, self.channels))


def conv(*args: int, bins: tuple[int, ...] = PYRAMID, k: int = 3, align: bool = False) -> Case:
    return Case(*args, bins=bins, kernel_size=k, sum_levels=True, align_corners=align)


def concat(*args: int, x: int, bins: tuple[int, ...] = PYRAMID, align: bool = False) -> Case:
    return Case(*args, bins=bins, first_channel=x, align_corners=align)


CASES = [
    conv(2, 8, 13, 11),
    conv(1, 72, 9, 10, align=True),
    conv(2, 16, 7, 5, k=1),
    conv(1, 3, 2, 1, align=True),
    conv(3, 40, 1, 1),
    conv(1, 8, 1, 6, bins=(1,)),
    conv(1, 8, 5, 4, bins=LARGEST),
    conv(1, 2, 5, 3, bins=(64,), align=True),
    conv(1, 2, 3, 9000, bins=(3, 1), k=1),
    conv(1, 1, 2, 300),
    concat(2, 8, 13, 11, x=16),
    concat(1, 5, 6, 7, x=3, align=True),
    concat(2, 80, 3, 2, x=72),
    concat(1, 8, 1, 9, x=8, bins=(7,)),
    concat(1, 8, 40, 6, x=8, bins=LARGEST, align=True),
    concat(1, 1, 1, 9000, x=2, bins=(2, 6)),
    Case(2, 8, 5, 4, bins=(2, 3), kernel_size=3, first_channel=8),
]


def shifted(tensor: Tensor, shift: int) -> Tensor:
    """The elements, `shift` of them behind a 16-byte boundary; NaN lies before them."""
    buffer = torch.full((shift + tensor.numel(),), torch.nan, dtype=tensor.dtype)
    buffer[shift:] = tensor.flatten()
    return buffer[shift:]


class Upsample:
    """Both directions on the emulation. Maps are given and returned as [N, C, H, W]."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library

    def problem(self, case: Case, dtype: torch.dtype, channels_last: bool, relu: bool = False):
        numbers = [case.batch, case.height, case.width, case.map_channels, case.first_channel]
        numbers += [case.channels, case.kernel_size, DTYPES.index(dtype), case.sum_levels]
        numbers += [case.align_corners, channels_last, relu, len(case.bins), *case.bins]
        return (ctypes.c_int64 * 21)(*numbers)

    def forward(
        self,
        case: Case,
        values: Tensor,
        dtype: torch.dtype,
        channels_last: bool,
        *,
        base: Tensor | None = None,
        bias: Tensor | None = None,
        relu: bool = False,
        copied: Tensor | None = None,
        shift: int = 0,
        in_place: bool = False,
    ) -> Tensor:
        def flat(tensor: Tensor | None) -> Tensor | None:
            if tensor is None:
                return None
            is_map = channels_last and tensor.dim() == 4
            return shifted(tensor.movedim(1, -1) if is_map else tensor, shift)

        given = [flat(tensor) for tensor in (base, bias, copied, values)]
        result = shifted(torch.full(case.map_size, torch.nan, dtype=dtype), shift)
        if in_place:
            result = given[0]
        error = self.library.pyramid_upsample(
            self.problem(case, dtype, channels_last, relu),
            *(None if t is None else ctypes.c_void_p(t.data_ptr()) for t in (*given, result)),
        )
        assert error == 0
        batch, channels, height, width = case.map_size
        if channels_last:
            return result.view(batch, height, width, channels).movedim(-1, 1)
        return result.view(case.map_size)

    def backward(self, case: Case, grad: Tensor, channels_last: bool, shift: int = 0) -> Tensor:
        given = shifted(grad.movedim(1, -1) if channels_last else grad, shift)
        result = shifted(torch.full(case.values_size, torch.nan), shift)
        error = self.library.pyramid_upsample_backward(
            self.problem(case, grad.dtype, channels_last),
            ctypes.c_void_p(given.data_ptr()),
            ctypes.c_void_p(result.data_ptr()),
        )
        assert error == 0
        return result.view(case.values_size)


@pytest.fixture
def upsample(emulated: Callable[[str], ctypes.CDLL]) -> Upsample:
    return Upsample(emulated("pyramid_upsample"))


def reference(case: Case, values: Tensor) -> Tensor:
    """The upsampled channels: F.interpolate of each level and tap, moved by the tap, zeros outside
    of the map; the sum over taps, of levels if they are summed."""
    k, height, width = case.kernel_size, case.height, case.width
    levels = []
    for level, b in zip(values.split([b * b for b in case.bins], dim=1), case.bins, strict=True):
        total = values.new_zeros(case.batch, case.channels, height, width)
        for ky in range(k):
            for kx in range(k):
                bins = level[:, :, ky, kx].movedim(-1, 1).unflatten(2, (b, b))
                map_ = F.interpolate(
                    bins, (height, width), mode="bilinear", align_corners=case.align_corners
                )
                reach = k // 2
                padded = F.pad(map_, [reach] * 4)
                total = total + padded[:, :, ky : ky + height, kx : kx + width]
        levels.append(total)
    return torch.stack(levels).sum(0) if case.sum_levels else torch.cat(levels, dim=1)


def assert_exact_to_rounding(got: Tensor, expected: Tensor, scale: float = 1.0) -> None:
    """float32 sums of numbers that add up to about `scale`, rounded once to the result's dtype."""
    rounding = 0.51 * torch.finfo(got.dtype).eps
    torch.testing.assert_close(got.double(), expected, rtol=max(rounding, 1e-6), atol=2e-6 * scale)


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
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
    # A bin gathers random numbers of a share of the map.
    assert_exact_to_rounding(got, exact_values.grad, scale=(case.height * case.width) ** 0.5)

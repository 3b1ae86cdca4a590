"""pyramid_upsample on the emulation: cases, how the library is called, the reference."""

import ctypes
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


FORMATS = pytest.mark.parametrize(
    "channels_last", [False, True], ids=["contiguous", "channels_last"]
)


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
    conv(1, 2, 3, 1000, bins=(3, 1), k=1),
    conv(1, 1, 2, 300),
    concat(2, 8, 13, 11, x=16),
    concat(1, 5, 6, 7, x=3, align=True),
    concat(2, 80, 3, 2, x=72),
    concat(1, 8, 1, 9, x=8, bins=(7,)),
    concat(1, 8, 40, 6, x=8, bins=LARGEST, align=True),
    concat(1, 1, 1, 1000, x=2, bins=(2, 6)),
    Case(2, 8, 5, 4, bins=(2, 3), kernel_size=3, first_channel=8),
    # A multiple of 16 bytes in all but one: the first channels, the map's, the values'.
    concat(1, 1, 5, 3, x=6, bins=(2, 3)),
    concat(1, 3, 5, 3, x=8, bins=(2, 3)),
    concat(1, 4, 5, 3, x=8, bins=(2, 3)),
    # Several tiles along both axes.
    conv(1, 8, 25, 140),
    concat(2, 8, 13, 140, x=16, align=True),
    # So many blocks that a tile has several rows and a block all its lanes.
    conv(256, 8, 5, 3, bins=(1, 3)),
    conv(256, 3, 5, 2, bins=(2,), k=1, align=True),
    concat(128, 8, 5, 2, x=8, bins=(1, 2, 3, 4)),
    # The same of more sources than positions.
    conv(300, 8, 1, 2, bins=(7,)),
    concat(300, 8, 1, 1, x=0, bins=(7, 3)),
    # Contiguous rows of vectors, and of those of float32 alone; a block's last channels missing.
    conv(2, 13, 7, 8),
    concat(1, 3, 5, 12, x=3),
    # Vectors of two rows, in bands of as many rows as fit, rounded up.
    conv(1, 12, 50, 4),
    conv(1, 3, 6, 60, align=True),
    concat(1, 5, 6, 20, x=1),
    conv(256, 2, 30, 4, bins=(2,), k=1),
    # Planes of vectors, but not their rows.
    conv(1, 9, 8, 6),
    # Tiles of vectors.
    conv(1, 9, 3, 144, align=True),
    concat(1, 1, 2, 260, x=1, bins=(2, 6)),
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
    ) -> Tensor:
        def flat(tensor: Tensor | None) -> Tensor | None:
            if tensor is None:
                return None
            is_map = channels_last and tensor.dim() == 4
            return shifted(tensor.movedim(1, -1) if is_map else tensor, shift)

        given = [flat(tensor) for tensor in (base, bias, copied, values)]
        result = shifted(torch.full(case.map_size, torch.nan, dtype=dtype), shift)
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

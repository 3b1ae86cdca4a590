"""The CUDA kernels of pyramid_upsample on the emulation, against float64 PyTorch."""

import ctypes
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

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
def test_first_channels_stay_if_nothing_is_copied(upsample: Upsample, channels_last: bool) -> None:
    case = concat(2, 8, 5, 4, x=8)
    got = upsample.forward(case, torch.randn(case.values_size), torch.float32, channels_last)
    assert got[:, :8].isnan().all()
    assert not got[:, 8:].isnan().any()


@FORMATS
def test_there_may_be_no_first_channels(upsample: Upsample, channels_last: bool) -> None:
    case = concat(2, 8, 5, 4, x=0)
    values, nothing = torch.randn(case.values_size), torch.randn(1)
    got = upsample.forward(case, values, torch.float32, channels_last, copied=nothing)
    assert_exact_to_rounding(got, reference(case, values.double()))


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


@FORMATS
@pytest.mark.parametrize("align", [False, True])
def test_infinity_stays_where_it_has_weight(
    upsample: Upsample, align: bool, channels_last: bool
) -> None:
    # The middle position lies on the middle source, the others have no weight there.
    case = conv(1, 8, 5, 9, bins=(1, 3), align=align)
    values = torch.randn(case.values_size)
    grad_map = torch.randn(case.map_size)
    values[0, 5, 1, 2, 3] = torch.inf
    grad_map[0, 3, 2, 4] = torch.inf
    ones = values.isinf().double().requires_grad_()
    weights = reference(case, ones)
    weights.backward(grad_map.isinf().double())
    assert ones.grad is not None
    got = upsample.forward(case, values, torch.float32, channels_last)
    assert torch.equal(got.isinf(), weights > 0)
    assert not got.isnan().any()
    got = upsample.backward(case, grad_map, channels_last)
    assert torch.equal(got.isinf(), ones.grad > 0)
    assert not got.isnan().any()


@FORMATS
@pytest.mark.parametrize(
    "case",
    [conv(2, 8, 1, 5), concat(2, 8, 1, 5, x=7), conv(2, 8, 1, 8)],
    ids=["conv", "concat", "vectors"],
)
def test_offsets_beyond_32_bits(
    upsample: Upsample, tmp_path: Path, case: Case, channels_last: bool
) -> None:
    """Image 1, and with channels_last pixel 4 of a row, begin at least 2³¹ elements behind the
    first, in a file that has only what is touched."""
    channels = 2**29
    elements = case.batch * channels * case.width
    flat = torch.from_file(str(tmp_path / "map"), shared=True, size=elements, dtype=torch.bfloat16)
    if channels_last:
        wide = flat.view(case.batch, 1, case.width, channels).movedim(-1, 1)
    else:
        wide = flat.view(case.batch, channels, 1, case.width)
    map_ = wide[:, : case.map_channels]
    values = torch.randn(case.values_size)
    x = torch.randn(case.batch, case.first_channel, 1, case.width).bfloat16()
    problem = upsample.problem(case, torch.bfloat16, channels_last)
    problem[3] = channels  # of the map
    copied = x.movedim(1, -1).contiguous() if channels_last else x
    error = upsample.library.pyramid_upsample(
        problem,
        None,
        None,
        ctypes.c_void_p(copied.data_ptr()),
        ctypes.c_void_p(values.data_ptr()),
        ctypes.c_void_p(flat.data_ptr()),
    )
    assert error == 0
    expected = upsample.forward(case, values, torch.bfloat16, channels_last, copied=x)
    assert torch.equal(map_, expected)
    grad_values = torch.full(case.values_size, torch.nan)
    error = upsample.library.pyramid_upsample_backward(
        problem, ctypes.c_void_p(flat.data_ptr()), ctypes.c_void_p(grad_values.data_ptr())
    )
    assert error == 0
    assert torch.equal(grad_values, upsample.backward(case, expected, channels_last))


@pytest.mark.parametrize("sanitizers", ["thread", "address,undefined"])
def test_sanitizers_are_silent(sanitized: Callable[..., str], sanitizers: str) -> None:
    assert sanitized("pyramid_upsample_main", sanitizers) == ""

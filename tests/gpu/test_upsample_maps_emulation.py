"""The CUDA kernels of upsample_maps on the emulation, for maps of any sizes, against float64
PyTorch. Those of pyramids are tested as pyramid_upsample."""

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@dataclass(frozen=True)
class Case:
    """Values [N, rows, cols, k, k, C] of each level become a map [N, C, H, W]."""

    batch: int
    channels: int
    size: tuple[int, int]
    levels: tuple[tuple[int, int], ...]
    kernel_size: int = 3
    align_corners: bool = False
    nearest: bool = False

    def value_sizes(self) -> list[torch.Size]:
        k = self.kernel_size
        return [torch.Size((self.batch, *level, k, k, self.channels)) for level in self.levels]

    @property
    def map_size(self) -> torch.Size:
        return torch.Size((self.batch, self.channels, *self.size))


CASES = [
    # Each level half as large as the one before, in tiles of several sources.
    Case(1, 16, (32, 48), ((16, 24), (8, 12), (4, 6))),
    Case(2, 8, (24, 24), ((12, 12), (6, 6)), align_corners=True),
    # Sizes that divide nothing.
    Case(1, 9, (23, 33), ((12, 17), (6, 9))),
    Case(1, 8, (31, 22), ((13, 9),), align_corners=True),
    # Wider than a tile; vectors of contiguous pixels.
    Case(1, 8, (6, 264), ((3, 132), (2, 7))),
    Case(1, 8, (5, 150), ((5, 75),)),
    # One axis stays.
    Case(2, 8, (8, 20), ((8, 10), (4, 20))),
    # As large as the map, and single positions.
    Case(1, 8, (7, 9), ((7, 9), (1, 1))),
    Case(1, 3, (1, 1), ((1, 1),)),
    Case(1, 40, (12, 12), ((6, 6),), kernel_size=1),
    # As many levels as there may be.
    Case(1, 8, (16, 16), ((8, 8), (7, 7), (6, 6), (5, 5), (4, 4), (3, 3), (2, 2), (1, 1))),
    # So large a batch that nothing is cut for more blocks.
    Case(64, 64, (8, 8), ((4, 4), (2, 2))),
    Case(1, 16, (16, 24), ((8, 12), (5, 7)), nearest=True),
    Case(2, 5, (13, 11), ((6, 4), (13, 11), (1, 1)), nearest=True),
    Case(1, 8, (9, 300), ((4, 77),), kernel_size=1, nearest=True),
]


class Maps:
    """Both directions on the emulation."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library

    def problem(self, case: Case, given: Tensor, values: Sequence[Tensor], relu: bool):
        channels_last = not given.is_contiguous()
        numbers = [case.batch, *case.size, case.channels, case.kernel_size]
        numbers += [DTYPES.index(given.dtype), DTYPES.index(values[0].dtype)]
        numbers += [case.align_corners, case.nearest, channels_last, relu, len(case.levels)]
        for axis in range(2):
            sizes = [level[axis] for level in case.levels]
            numbers += [*sizes, *[0] * (8 - len(sizes))]
        return (ctypes.c_int64 * len(numbers))(*map(int, numbers))

    def forward(
        self,
        case: Case,
        values: Sequence[Tensor],
        result: Tensor,
        base: Tensor | None = None,
        bias: Tensor | None = None,
        relu: bool = False,
    ) -> Tensor:
        error = self.library.upsample_maps(
            self.problem(case, result, values, relu),
            *(None if t is None else ctypes.c_void_p(t.data_ptr()) for t in (base, bias)),
            pointers(values),
            ctypes.c_void_p(result.data_ptr()),
        )
        assert error == 0
        return result

    def backward(self, case: Case, grad: Tensor, value_dtype: torch.dtype) -> list[Tensor]:
        results = [torch.full(size, torch.nan, dtype=value_dtype) for size in case.value_sizes()]
        error = self.library.upsample_maps_backward(
            self.problem(case, grad, results, False),
            ctypes.c_void_p(grad.data_ptr()),
            pointers(results),
        )
        assert error == 0
        return results


def pointers(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*(t.data_ptr() for t in tensors))


@pytest.fixture
def maps(emulated: Callable[..., ctypes.CDLL]) -> Maps:
    return Maps(emulated("upsample_maps"))


@pytest.fixture
def maps_of_a_small_gpu(emulated: Callable[..., ctypes.CDLL]) -> Maps:
    """A T4's multiprocessor has 64 KB."""
    return Maps(emulated("upsample_maps", f"-DEMULATION_SHARED_BYTES={64 * 1024}"))


def reference(case: Case, values: Sequence[Tensor]) -> Tensor:
    """F.interpolate of each level and tap, moved by the tap, zeros outside of the map."""
    k, (height, width) = case.kernel_size, case.size
    total = values[0].new_zeros(case.map_size)
    mode = (
        {"mode": "nearest"}
        if case.nearest
        else {
            "mode": "bilinear",
            "align_corners": case.align_corners,
        }
    )
    for level in values:
        for ky in range(k):
            for kx in range(k):
                # float: F.interpolate takes other sources for contiguous float64 maps.
                source = level[:, :, :, ky, kx].movedim(-1, 1).to(memory_format=torch.channels_last)
                interpolated = F.interpolate(source, case.size, **mode)
                padded = F.pad(interpolated, [k // 2] * 4)
                total = total + padded[:, :, ky : ky + height, kx : kx + width]
    return total


def assert_exact_to_rounding(got: Tensor, expected: Tensor, scale: float) -> None:
    """float32 sums of numbers that add up to about `scale`, rounded once to the result's dtype."""
    rounding = 0.51 * torch.finfo(got.dtype).eps
    torch.testing.assert_close(got.double(), expected, rtol=max(rounding, 1e-6), atol=2e-6 * scale)


def in_format(x: Tensor, channels_last: bool) -> Tensor:
    return x.to(memory_format=torch.channels_last) if channels_last else x.contiguous()


both_formats = pytest.mark.parametrize(
    "channels_last", [False, True], ids=["contiguous", "channels_last"]
)
every_case = pytest.mark.parametrize("case", CASES, ids=str)


@both_formats
@pytest.mark.parametrize(
    ("dtype", "value_dtype"),
    [*zip(DTYPES, DTYPES, strict=True), (torch.float16, torch.float32)],
    ids=lambda d: str(d).removeprefix("torch."),
)
@every_case
def test_forward_and_backward(
    maps: Maps, case: Case, dtype: torch.dtype, value_dtype: torch.dtype, channels_last: bool
) -> None:
    check(maps, case, dtype, value_dtype, channels_last)


@both_formats
@every_case
def test_on_a_small_gpu(maps_of_a_small_gpu: Maps, case: Case, channels_last: bool) -> None:
    check(maps_of_a_small_gpu, case, torch.float16, torch.float16, channels_last)


def check(
    maps: Maps, case: Case, dtype: torch.dtype, value_dtype: torch.dtype, channels_last: bool
) -> None:
    values = [torch.randn(size).to(value_dtype) for size in case.value_sizes()]
    exact = [v.double().requires_grad_() for v in values]
    base, bias = torch.randn(case.map_size).to(dtype), torch.randn(case.channels).to(dtype)
    base[0, 0, 0, 0] = torch.nan
    base, grad = in_format(base, channels_last), in_format(torch.randn_like(base), channels_last)
    interpolated = reference(case, exact)
    interpolated.backward(grad.double())
    with torch.no_grad():
        expected = (interpolated + base.double() + bias.double()[:, None, None]).relu()
    got = maps.forward(case, values, torch.full_like(base, torch.nan), base, bias, relu=True)
    assert got[0, 0, 0, 0].isnan()
    got[0, 0, 0, 0] = expected[0, 0, 0, 0] = 0
    assert_exact_to_rounding(got, expected, scale=8)
    plain = maps.forward(case, values, torch.full_like(base, torch.nan))
    assert_exact_to_rounding(plain, interpolated.detach(), scale=8)
    for got, value in zip(maps.backward(case, grad, value_dtype), exact, strict=True):
        assert value.grad is not None
        positions = case.size[0] * case.size[1] / (value.shape[1] * value.shape[2])
        assert_exact_to_rounding(got, value.grad, scale=4 + positions)

"""csrc/geometry.h against the definitions of adaptive pooling and interpolation in plain Python."""

import ctypes
from collections.abc import Callable
from fractions import Fraction
from math import floor

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

MAX_AXIS_BINS = 64
MAX_AXIS_SIZE = 2**23


@pytest.fixture(scope="module")
def geometry(emulated: Callable[[str], ctypes.CDLL]) -> ctypes.CDLL:
    library = emulated("geometry")
    for function in (library.bin_begin, library.bin_end):
        function.argtypes = [ctypes.c_int64] * 3
        function.restype = ctypes.c_int64
    return library


def edges(u: int, size: int, bins: int) -> tuple[int, int]:
    """floor(u size / bins), ceil((u + 1) size / bins)"""
    return u * size // bins, -(-(u + 1) * size // bins)


def axis_cells(
    geometry: ctypes.CDLL, size: int, bins: list[int]
) -> tuple[list[int], list[int], list[int]]:
    edge = (ctypes.c_int32 * (2 * MAX_AXIS_BINS))()
    begin, end = (ctypes.c_int32 * MAX_AXIS_BINS)(), (ctypes.c_int32 * MAX_AXIS_BINS)()
    levels = (ctypes.c_int32 * len(bins))(*bins)
    count = geometry.axis_cells(ctypes.c_int64(size), levels, len(bins), edge, begin, end)
    return edge[: count + 1], begin[: sum(bins)], end[: sum(bins)]


@given(size=st.integers(1, 2**31 - 1), bins=st.integers(1, MAX_AXIS_BINS), u=st.integers(0, 63))
def test_bin_edges(geometry: ctypes.CDLL, size: int, bins: int, u: int) -> None:
    u %= bins
    got = (geometry.bin_begin(u, size, bins), geometry.bin_end(u, size, bins))
    assert got == edges(u, size, bins)


@given(
    size=st.one_of(st.integers(1, 200), st.integers(1, 2**31 - 1)),
    bins=st.lists(st.integers(1, 16), min_size=1, max_size=8).filter(lambda b: sum(b) <= 64),
)
def test_bins_are_unions_of_cells(geometry: ctypes.CDLL, size: int, bins: list[int]) -> None:
    edge, begin, end = axis_cells(geometry, size, bins)
    expected = [edges(u, size, b) for b in bins for u in range(b)]
    assert edge == sorted({position for bin_edges in expected for position in bin_edges})
    assert (edge[0], edge[-1]) == (0, size)
    assert [(edge[i], edge[j]) for i, j in zip(begin, end, strict=True)] == expected


def test_usual_pyramid_has_at_most_eleven_cells(geometry: ctypes.CDLL) -> None:
    counts = {size: len(axis_cells(geometry, size, [1, 2, 3, 6])[0]) - 1 for size in range(1, 200)}
    assert max(counts.values()) == 11
    assert counts[60] == 6


def interpolation_tap(
    geometry: ctypes.CDLL, position: int, size: int, sources: int, align_corners: bool
) -> tuple[int, int, float, float]:
    """Low and high source, weight of the high one in float32 and in float64."""
    low, high = ctypes.c_int32(), ctypes.c_int32()
    weight, double_weight = ctypes.c_float(), ctypes.c_double()
    out = (low, high, weight, double_weight)
    assert geometry.interpolation_tap(
        position, size, sources, ctypes.c_bool(align_corners), *map(ctypes.byref, out)
    )
    return low.value, high.value, weight.value, double_weight.value


def source_coordinate(position: int, size: int, sources: int, align_corners: bool) -> Fraction:
    if align_corners:
        return Fraction(position * (sources - 1), max(size - 1, 1))
    return max(Fraction(2 * position + 1, 2 * size) * sources - Fraction(1, 2), Fraction(0))


def assert_is_tap(
    geometry: ctypes.CDLL, position: int, size: int, sources: int, align_corners: bool
) -> None:
    low, high, weight, double_weight = interpolation_tap(
        geometry, position, size, sources, align_corners
    )
    coordinate = source_coordinate(position, size, sources, align_corners)
    assert (low, high) == (floor(coordinate), min(floor(coordinate) + 1, sources - 1))
    # The fraction rounded once.
    assert double_weight == float(coordinate - low)
    assert weight == ctypes.c_float(float(coordinate - low)).value


@given(data=st.data(), sources=st.integers(1, MAX_AXIS_BINS), align_corners=st.booleans())
def test_interpolation_taps(
    geometry: ctypes.CDLL, data: st.DataObject, sources: int, align_corners: bool
) -> None:
    size = data.draw(st.one_of(st.integers(1, 200), st.integers(1, MAX_AXIS_SIZE)))
    position = data.draw(st.integers(0, size - 1))
    assert_is_tap(geometry, position, size, sources, align_corners)


@pytest.mark.parametrize("align_corners", [False, True])
def test_interpolation_taps_at_the_ends(geometry: ctypes.CDLL, align_corners: bool) -> None:
    for size in (1, 2, 3, MAX_AXIS_SIZE - 1, MAX_AXIS_SIZE):
        for sources in range(1, MAX_AXIS_BINS + 1):
            for position in {0, 1 % size, size // 2, size - 1 - 1 % size, size - 1}:
                assert_is_tap(geometry, position, size, sources, align_corners)


@pytest.mark.parametrize("align_corners", [False, True])
def test_taps_interpolate_as_torch(geometry: ctypes.CDLL, align_corners: bool) -> None:
    for sources in range(1, 10):
        identity = torch.eye(sources, dtype=torch.float64)[None]
        for size in range(1, 20):
            expected = F.interpolate(identity, size, mode="linear", align_corners=align_corners)[0]
            got = torch.zeros_like(expected)
            for position in range(size):
                tap = interpolation_tap(geometry, position, size, sources, align_corners)
                low, high, _, weight = tap
                got[low, position] += 1 - weight
                got[high, position] += weight
            torch.testing.assert_close(got, expected)


def torch_sources(size: int, sources: int) -> list[int]:
    """What mode "nearest" of F.interpolate takes, in float32."""
    positions = torch.arange(sources, dtype=torch.float32)
    return F.interpolate(positions[None, None], size, mode="nearest")[0, 0].int().tolist()


@pytest.mark.parametrize("sources", [1, 2, 7, 49, 64])
def test_nearest_sources(geometry: ctypes.CDLL, sources: int) -> None:
    for size in [1, 5, *range(48, 131), 1000, 99991]:
        expected = torch_sources(size, sources)
        long = ctypes.c_int64
        got = [geometry.nearest_source(long(i), long(size), long(sources)) for i in range(size)]
        assert got == expected
        for source in range(sources + 1):
            first = next((i for i, taken in enumerate(expected) if taken >= source), size)
            assert geometry.first_nearest_position(source, size, sources) == first

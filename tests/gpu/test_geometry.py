"""csrc/geometry.h against adaptive pooling's definition in plain Python."""

import ctypes
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

MAX_AXIS_BINS = 64


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

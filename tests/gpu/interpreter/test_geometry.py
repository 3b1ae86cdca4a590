"""kernels/jit/common/geometry.py against the definitions of pooling and of interpolation, in
exact arithmetic."""

from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from pspfast.kernels.jit.common import geometry


@triton.jit
def _edges_kernel(p_edges, size, bins, BLOCK: tl.constexpr):
    u = tl.arange(0, BLOCK)
    begin, end = geometry.bin_edges(u, size, bins)
    tl.store(p_edges + u, begin, mask=u < bins)
    tl.store(p_edges + bins + u, end, mask=u < bins)


@triton.jit
def _next_edges_kernel(p_edges, size, BINS: tl.constexpr, BLOCK: tl.constexpr):
    position = tl.arange(0, BLOCK)
    edges = geometry.next_edge(position, size, BINS)
    tl.store(p_edges + position, edges, mask=position < size)


@triton.jit
def _bins_kernel(p_bins, height, width, bin_count, BINS: tl.constexpr, BLOCK: tl.constexpr):
    o_s = tl.arange(0, BLOCK)
    row_begin, row_end, column, area = geometry.locate_bins(o_s, height, width, BINS)
    m_s = o_s < bin_count
    tl.store(p_bins + o_s, row_begin, mask=m_s)
    tl.store(p_bins + bin_count + o_s, row_end, mask=m_s)
    tl.store(p_bins + 2 * bin_count + o_s, column, mask=m_s)
    tl.store(p_bins + 3 * bin_count + o_s, area.to(tl.int32), mask=m_s)


@triton.jit
def _nearest_kernel(p_sources, size, sources, BLOCK: tl.constexpr):
    position = tl.arange(0, BLOCK)
    source = geometry.nearest_source(position, size, sources)
    tl.store(p_sources + position, source, mask=position < size)


def edges(u: int, size: int, bins: int) -> tuple[int, int]:
    """floor(u size / bins), ceil((u + 1) size / bins)"""
    return u * size // bins, -(-(u + 1) * size // bins)


# The last axis is the longest whose products with 64 bins int32 holds.
@pytest.mark.parametrize("size", [1, 5, 60, 61, 2**31 // 64 - 1])
@pytest.mark.parametrize("bins", [1, 6, 64])
def test_bin_edges(size: int, bins: int) -> None:
    got = torch.full((2, bins), -1, dtype=torch.int32)
    _edges_kernel[(1,)](got, size, bins, BLOCK=64)
    assert list(zip(*got.tolist(), strict=True)) == [edges(u, size, bins) for u in range(bins)]


@pytest.mark.parametrize("size", [1, 2, 7, 60, 61])
@pytest.mark.parametrize("bins", [(1,), (1, 2, 3, 6), (8, 5)])
def test_next_edge(size: int, bins: tuple[int, ...]) -> None:
    got = torch.full((size,), -1, dtype=torch.int32)
    _next_edges_kernel[(1,)](got, size, BINS=bins, BLOCK=128)
    known = {edge for b in bins for u in range(b) for edge in edges(u, size, b)}
    expected = [min(edge for edge in known if edge > position) for position in range(size)]
    assert got.tolist() == expected


@pytest.mark.parametrize(("height", "width"), [(60, 61), (4, 1), (13, 97)])
@pytest.mark.parametrize("bins", [(1,), (1, 2, 3, 6), (6, 2)])
def test_locate_bins(height: int, width: int, bins: tuple[int, ...]) -> None:
    bin_count = sum(b * b for b in bins)
    got = torch.full((4, bin_count), -1, dtype=torch.int32)
    _bins_kernel[(1,)](got, height, width, bin_count, BINS=bins, BLOCK=64)
    expected = []
    for level, b in enumerate(bins):
        for u in range(b):
            for v in range(b):
                (top, bottom), (left, right) = edges(u, height, b), edges(v, width, b)
                area = (bottom - top) * (right - left)
                expected.append((top, bottom, sum(bins[:level]) + v, area))
    assert list(zip(*got.tolist(), strict=True)) == expected


@triton.jit
def _taps_kernel(
    p_positions,
    p_sources,
    p_weights,
    count,
    size,
    sources,
    ALIGN_CORNERS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    o = tl.arange(0, BLOCK)
    position = tl.load(p_positions + o, mask=o < count, other=0)
    low, high, weight = geometry.interpolation_tap(position, size, sources, ALIGN_CORNERS)
    tl.store(p_sources + o, low, mask=o < count)
    tl.store(p_sources + count + o, high, mask=o < count)
    tl.store(p_weights + o, weight, mask=o < count)


@triton.jit
def _weights_kernel(
    p_positions,
    p_weights,
    count,
    size,
    sources,
    ALIGN_CORNERS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    o = tl.arange(0, BLOCK)
    position = tl.load(p_positions + o, mask=o < count, other=0)
    source = tl.arange(0, 64)
    weight = geometry.interpolation_weight(
        position[:, None], size, source[None, :], sources, ALIGN_CORNERS
    )
    mask = (o < count)[:, None] & (source < sources)[None, :]
    tl.store(p_weights + o[:, None] * sources + source[None, :], weight, mask=mask)


@triton.jit
def _positions_kernel(p_positions, size, sources, ALIGN_CORNERS: tl.constexpr):
    source = tl.arange(0, 64)
    begin, end = geometry.weighted_positions(source, size, sources, ALIGN_CORNERS)
    tl.store(p_positions + 2 * source, begin, mask=source < sources)
    tl.store(p_positions + 2 * source + 1, end, mask=source < sources)


def weight(position: int, size: int, source: int, sources: int, align_corners: bool) -> Fraction:
    """The weight of ``source`` at ``position`` in F.interpolate."""
    if align_corners:
        coordinate = position * Fraction(sources - 1, max(size - 1, 1))
    else:
        coordinate = (position + Fraction(1, 2)) * Fraction(sources, size) - Fraction(1, 2)
    coordinate = min(max(coordinate, Fraction(0)), Fraction(sources - 1))
    return max(1 - abs(coordinate - source), Fraction(0))


def positions_to_test(size: int, sources: int) -> list[int]:
    """All positions of a short axis; of a long one its ends, and both sides of some sources."""
    if size <= 64:
        return list(range(size))
    near = {0, size - 1}
    for source in range(0, sources, max(1, sources // 5)):
        aligned = source * (size - 1) // max(sources - 1, 1)
        centered = (2 * source + 1) * size // (2 * sources)
        near |= {middle + step for middle in (aligned, centered) for step in (-1, 0, 1)}
    return sorted(position for position in near if 0 <= position < size)


# Primes, what sources divide and what they do not, fewer positions than sources; the last are the
# longest axes that int32 serves, a prime and a power of two.
SIZES = [1, 2, 5, 13, 60, 61, 2**23 - 15, 2**23]
SOURCES = [1, 2, 3, 6, 37, 64]
# Three roundings, of the reciprocal, the product and the difference, to float32 below 1.
ROUNDING = 3 * 2.0**-24


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("sources", SOURCES)
def test_interpolation_tap(sources: int, size: int, align_corners: bool) -> None:
    positions = positions_to_test(size, sources)
    low_high = torch.full((2, len(positions)), -1, dtype=torch.int32)
    high_weight = torch.full((len(positions),), torch.nan)
    _taps_kernel[(1,)](
        torch.tensor(positions, dtype=torch.int32),
        low_high,
        high_weight,
        len(positions),
        size,
        sources,
        ALIGN_CORNERS=align_corners,
        BLOCK=64,
    )
    for position, low, high, of_high in zip(
        positions, *low_high.tolist(), high_weight.tolist(), strict=True
    ):
        got = [0.0] * sources
        got[low] += 1 - of_high
        got[high] += of_high
        for source in range(sources):
            exact = weight(position, size, source, sources, align_corners)
            assert got[source] == pytest.approx(float(exact), rel=0, abs=ROUNDING)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("sources", SOURCES)
def test_interpolation_weight(sources: int, size: int, align_corners: bool) -> None:
    off_axis = [-1, size]
    positions = positions_to_test(size, sources) + off_axis
    got = torch.full((len(positions), sources), torch.nan)
    _weights_kernel[(1,)](
        torch.tensor(positions, dtype=torch.int32),
        got,
        len(positions),
        size,
        sources,
        ALIGN_CORNERS=align_corners,
        BLOCK=128,
    )
    assert not got[-2:].any()
    for position, weights in zip(positions[:-2], got.tolist(), strict=False):
        for source in range(sources):
            exact = weight(position, size, source, sources, align_corners)
            assert weights[source] == pytest.approx(float(exact), rel=0, abs=ROUNDING)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("sources", SOURCES)
def test_weighted_positions(sources: int, size: int, align_corners: bool) -> None:
    got = torch.full((sources, 2), -1, dtype=torch.int32)
    _positions_kernel[(1,)](got, size, sources, ALIGN_CORNERS=align_corners)
    for source, (begin, end) in enumerate(got.tolist()):

        def has_weight(position: int, source: int = source) -> bool:
            return weight(position, size, source, sources, align_corners) > 0

        if size <= 64:
            assert list(range(begin, end)) == [p for p in range(size) if has_weight(p)]
        else:
            assert has_weight(begin)
            assert has_weight(end - 1)
            assert begin == 0 or not has_weight(begin - 1)
            assert end == size or not has_weight(end)


@pytest.mark.parametrize("size", [1, 2, 60, 93, 131, 1000])
@pytest.mark.parametrize("sources", [1, 2, 7, 49, 64])
def test_nearest_source(sources: int, size: int) -> None:
    got = torch.full((size,), -1, dtype=torch.int32)
    _nearest_kernel[(1,)](got, size, sources, BLOCK=1024)
    positions = torch.arange(sources, dtype=torch.float32)
    assert torch.equal(got, F.interpolate(positions[None, None], size, mode="nearest")[0, 0].int())

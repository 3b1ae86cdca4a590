"""kernels/geometry.py against adaptive pooling's definition in plain Python."""

import pytest
import torch
import triton
import triton.language as tl

from pspfast.kernels import geometry


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

"""Sizes and windows against the published procedures, step by step."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pspfast.models.windows import (
    mmseg_size,
    semseg_size,
    semseg_stride,
    visits,
    window_starts,
)

CPU = torch.device("cpu")
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


def semseg_starts(length: int, crop: int, stride: int) -> list[int]:
    starts = []
    for index in range(int(np.ceil(float(length - crop) / stride) + 1)):
        end = min(index * stride + crop, length)
        starts.append(end - crop)
    return starts


def mmseg_starts(length: int, crop: int, stride: int) -> list[int]:
    starts = []
    for index in range(max(length - crop + stride - 1, 0) // stride + 1):
        end = min(index * stride + crop, length)
        starts.append(max(end - crop, 0))
    return starts


@st.composite
def axes(draw: st.DrawFn) -> tuple[int, int, int]:
    crop = draw(st.integers(1, 60))
    return draw(st.integers(crop, 120)), crop, draw(st.integers(1, crop))


@settings(deadline=None)
@given(axes())
def test_window_starts(axis: tuple[int, int, int]) -> None:
    length, crop, stride = axis
    starts = window_starts(length, crop, stride)
    assert starts == semseg_starts(length, crop, stride) == mmseg_starts(length, crop, stride)
    covered = {i for start in starts for i in range(start, start + crop)}
    assert covered == set(range(length))


@pytest.mark.parametrize(
    ("size", "base", "crop", "counts"),
    [
        ((1024, 2048), 2048, 713, [2, 6, 8, 15, 18, 32]),  # Cityscapes
        ((375, 500), 512, 473, [1, 1, 2, 4, 4, 6]),  # an image of ADE20K
    ],
)
def test_number_of_windows_of_published_settings(size, base, crop, counts) -> None:
    got = []
    for scale in SCALES:
        padded = [max(s, crop) for s in semseg_size(size, round(scale * base))]
        stride = semseg_stride((crop, crop))
        rows, cols = (window_starts(s, crop, d) for s, d in zip(padded, stride, strict=True))
        got.append(len(rows) * len(cols))
    assert got == counts


def test_strides_of_published_crops() -> None:
    assert semseg_stride((473, 713)) == (316, 476)


@settings(deadline=None)
@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 4000))
def test_semseg_size(height: int, width: int, long: int) -> None:
    expected = [long, long]
    if height > width:
        expected[1] = round(long / float(height) * width)
    else:
        expected[0] = round(long / float(width) * height)
    # An image of no width could not be resized.
    assert list(semseg_size((height, width), long)) == [max(length, 1) for length in expected]


def test_rounding_of_sizes() -> None:
    # Half of 5 and of 7 to even in semseg, up in mmseg.
    assert semseg_size((5, 10), 5) == (2, 5)
    assert semseg_size((10, 7), 5) == (5, 4)
    assert mmseg_size((5, 7), 0.5) == (3, 4)


@settings(deadline=None)
@given(axes(), axes())
def test_visits(vertical: tuple[int, int, int], horizontal: tuple[int, int, int]) -> None:
    starts = [window_starts(*axis) for axis in (vertical, horizontal)]
    size, crop = (vertical[0], horizontal[0]), (vertical[1], horizontal[1])
    expected = torch.zeros(size)
    for y in starts[0]:
        for x in starts[1]:
            expected[y : y + crop[0], x : x + crop[1]] += 1
    assert torch.equal(visits(size, crop, *starts, CPU), expected)
    assert expected.min() >= 1

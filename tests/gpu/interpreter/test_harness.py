"""The interpreter's fixtures find the mistakes that they are there for."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from tools.traffic.counts import Traffic
from tools.traffic.interpreted import Interpreted, counting


@triton.jit
def _copy_kernel(p_in, p_out, first, end, BLOCK: tl.constexpr):
    o = first + tl.arange(0, BLOCK)
    tl.store(p_out + o, tl.load(p_in + o, mask=o < end), mask=o < end)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_unwritten_element(dtype: torch.dtype) -> None:
    given = torch.randn(8).to(dtype)
    for end, unwritten in ((8, []), (7, [7])):
        result = given.new_empty(8)
        _copy_kernel[(1,)](given, result, 0, end, BLOCK=16)
        assert result.isnan().nonzero().flatten().tolist() == unwritten


@pytest.mark.parametrize(("first", "end"), [(0, 9), (-1, 8)], ids=["behind", "before"])
def test_element_outside(first: int, end: int) -> None:
    whole = torch.randn(24)
    with pytest.raises(Exception, match="an address outside of all tensors"):
        _copy_kernel[(1,)](whole[8:16], torch.empty(10)[1:9], first, end, BLOCK=16)


@triton.jit
def _copy_blocks_kernel(p_in, p_out, BLOCK: tl.constexpr):
    o = (tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)) * BLOCK + tl.arange(0, BLOCK)
    tl.store(p_out + o, tl.load(p_in + o % BLOCK))


@pytest.mark.parametrize(("share", "programs"), [(1, 8), (2, 4)])
def test_counts_bytes_of_programs(share: int, programs: int) -> None:
    """Every program reads the same four sectors and writes four of its own."""
    given, result = torch.randn(32), torch.full((256,), torch.nan)
    with counting(share) as launches:
        _copy_blocks_kernel[(4, 2)](given, result, BLOCK=32)
    written = programs * 128
    traffic = Traffic(128 + written, 0, 128 + written, 2 * written)
    assert launches == [Interpreted("_copy_blocks_kernel", 8, traffic)]
    # The first half of the first axis, of all others.
    run = torch.arange(256) // 32 % 4 < 4 // share
    assert torch.equal(result.isnan(), ~run)
    assert torch.equal(result[run], given.repeat(programs))


@triton.jit
def _copy_before_kernel(p_in, p_out, first, end, BLOCK: tl.constexpr):
    o = tl.arange(0, BLOCK)
    m = (o < end) & (first < end)
    tl.store(p_out + o, tl.load(p_in + o, mask=m), mask=m)


def test_counts_masks_of_integers() -> None:
    """The interpreter makes such of a mask that compares numbers, too."""
    given, result = torch.randn(64), torch.empty(64)
    with counting() as launches:
        _copy_before_kernel[(1,)](given, result, 0, 40, BLOCK=64)
    (launch,) = launches
    assert launch.traffic == Traffic(2 * 160, 0, 2 * 160, 2 * 160)


@triton.jit
def _copy_box_kernel(d_in, d_out):
    d_out.store([0], d_in.load([0]))


def test_counts_boxes(written: list[np.ndarray]) -> None:
    """The interpreter's masks of descriptors are arrays, and no handles as others are."""
    given, result = torch.randn(40), torch.empty(40)
    boxes = [TensorDescriptor.from_tensor(tensor, [64]) for tensor in (given, result)]
    with counting() as launches:
        _copy_box_kernel[(1,)](*boxes)
    assert torch.equal(result, given)
    (launch,) = launches
    assert launch.traffic == Traffic(2 * 160, 0, 2 * 160, 2 * 160)
    (addresses,) = written
    assert addresses.tolist() == [result.data_ptr() + 4 * i for i in range(40)]

"""The interpreter's fixtures find the mistakes that they are there for."""

import pytest
import torch
import triton
import triton.language as tl


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

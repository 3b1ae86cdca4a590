"""What follows a sum of upsampled maps in its kernel."""

import triton
import triton.language as tl


@triton.jit
def store_sum(
    p_base,
    p_bias,
    p_out,
    b_out,
    o_out,
    m_out,
    o_c,
    m_c,
    HAS_BASE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    RELU: tl.constexpr,
):
    """Stores b_out [columns, channels], plus base at the same places if HAS_BASE, plus bias of the
    channels if HAS_BIAS; with RELU not below zero."""
    if HAS_BASE:
        b_out += tl.load(p_base + o_out, mask=m_out, other=0.0).to(tl.float32)
    if HAS_BIAS:
        b_out += tl.load(p_bias + o_c, mask=m_c, other=0.0).to(tl.float32)[None, :]
    if RELU:
        # NaN stays, as in torch.
        b_out = tl.where(b_out < 0.0, 0.0, b_out)
    tl.store(p_out + o_out, b_out.to(p_out.dtype.element_ty), mask=m_out)

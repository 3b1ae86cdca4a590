"""Kernels of batch_norm_relu: maps are matrices [P, C] of pixels and channels, dense, channels
innermost; all arithmetic is in float32, rounded once at the store; fixed order, bit-reproducible.

Sums over pixels and sizes are as batch_norm_statistics.py has them, which also says what statistics
are.
"""

import triton
import triton.language as tl

from .batch_norm_statistics import load_channels, load_sums, locate_channels


@triton.jit
def _locate_tile(pixels, channels, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """Channels and their mask, and offsets and mask [pixels, channels], of a program that has one
    tile. The first program has the last tile: the kernel before ended there, so the cache may still
    have it."""
    o_c, m_c, i_p, tiles = locate_channels(channels, BLOCK_C)
    o_p = (tiles - 1 - i_p) * BLOCK_P + tl.arange(0, BLOCK_P)
    return o_c, m_c, o_p[:, None] * channels + o_c[None, :], (o_p < pixels)[:, None] & m_c[None, :]


@triton.jit
def _load_rstd(p_statistics, channels, o_c, m_c, eps):
    """1 / std of channels, [1, channels]."""
    b_var = load_channels(p_statistics + channels, o_c, m_c)
    return tl.div_rn(tl.full(b_var.shape, 1.0, tl.float32), tl.sqrt_rn(b_var + eps))


@triton.jit
def _load_factors(p_statistics, p_weight, channels, o_c, m_c, eps):
    """Mean, 1 / std, and weight / std of channels, [1, channels] each."""
    b_mean = load_channels(p_statistics, o_c, m_c)
    b_rstd = _load_rstd(p_statistics, channels, o_c, m_c, eps)
    return b_mean, b_rstd, b_rstd * load_channels(p_weight, o_c, m_c)


@triton.jit
def _normalize(b_centered, b_scale, b_bias):
    """The value before residual and ReLU, which backward computes again for ReLU's mask. It is an
    explicit fma: the compiler fuses as the code around it suggests, and both must get the same
    bits."""
    return tl.fma(b_centered, tl.broadcast_to(b_scale, b_centered.shape), b_bias)


@triton.jit
def apply_kernel(
    p_x,
    p_statistics,
    p_weight,
    p_bias,
    p_residual,
    p_out,
    pixels,
    channels_quotient,
    eps,
    HAS_RESIDUAL: tl.constexpr,
    RELU: tl.constexpr,
    CHANNEL_DIVISOR: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """out [P, C]: x [P, C] normalised by statistics, times weight [C], plus bias [C] and, if
    HAS_RESIDUAL, residual [P, C]; with RELU not below zero."""
    channels = channels_quotient * CHANNEL_DIVISOR
    o_c, m_c, o_x, m_x = _locate_tile(pixels, channels, BLOCK_P, BLOCK_C)
    b_x = tl.load(p_x + o_x, mask=m_x, other=0.0).to(tl.float32)
    b_mean, _, b_scale = _load_factors(p_statistics, p_weight, channels, o_c, m_c, eps)
    b_out = _normalize(b_x - b_mean, b_scale, load_channels(p_bias, o_c, m_c))
    if HAS_RESIDUAL:
        b_out += tl.load(p_residual + o_x, mask=m_x, other=0.0).to(tl.float32)
    if RELU:
        # NaN stays, as in torch.
        b_out = tl.where(b_out < 0.0, 0.0, b_out)
    tl.store(p_out + o_x, b_out.to(p_out.dtype.element_ty), mask=m_x)


@triton.jit
def grad_sums_kernel(
    p_grad,
    p_x,
    p_statistics,
    p_weight,
    p_bias,
    p_residual,
    p_grad_residual,
    p_sums,
    pixels,
    channels_quotient,
    eps,
    HAS_RESIDUAL: tl.constexpr,
    RELU: tl.constexpr,
    CHANNEL_DIVISOR: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Sums [2, programs, C], float32, over the pixels of a program: of g, the part of grad [P, C]
    that passes ReLU, and of g * (x - mean). If HAS_RESIDUAL, grad_residual [P, C] is g.

    x and residual [P, C], statistics, weight and bias [C] are what apply_kernel takes: from them
    follows where ReLU passes."""
    channels = channels_quotient * CHANNEL_DIVISOR
    o_c, m_c, i_p, programs = locate_channels(channels, BLOCK_C)
    b_mean, _, b_scale = _load_factors(p_statistics, p_weight, channels, o_c, m_c, eps)
    b_bias = load_channels(p_bias, o_c, m_c)
    b_sum = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    b_product = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for first_p in tl.range(i_p * BLOCK_P, pixels, programs * BLOCK_P, num_stages=1):
        o_p = first_p + tl.arange(0, BLOCK_P)
        m_x = (o_p < pixels)[:, None] & m_c[None, :]
        o_x = o_p[:, None] * channels + o_c[None, :]
        b_g = tl.load(p_grad + o_x, mask=m_x, other=0.0).to(tl.float32)
        b_centered = tl.load(p_x + o_x, mask=m_x, other=0.0).to(tl.float32) - b_mean
        if RELU:
            b_out = _normalize(b_centered, b_scale, b_bias)
            if HAS_RESIDUAL:
                b_out += tl.load(p_residual + o_x, mask=m_x, other=0.0).to(tl.float32)
            # NaN passes gradient, as in torch.
            b_g = tl.where(b_out <= 0.0, 0.0, b_g)
        if HAS_RESIDUAL:
            b_grad_residual = b_g.to(p_grad_residual.dtype.element_ty)
            tl.store(p_grad_residual + o_x, b_grad_residual, mask=m_x)
        b_sum += b_g
        b_product += b_g * b_centered

    p_sums += i_p * channels
    tl.store(p_sums + o_c, tl.sum(b_sum, axis=0), mask=m_c)
    tl.store(p_sums + programs * channels + o_c, tl.sum(b_product, axis=0), mask=m_c)


@triton.jit
def add_sums_kernel(
    p_sums,
    p_statistics,
    p_total,
    channels_quotient,
    programs,
    eps,
    CHANNEL_DIVISOR: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """total [2, C], float32, the gradients of bias and weight: the sums [2, programs, C] of
    grad_sums_kernel added over programs, the second times 1 / std."""
    channels = channels_quotient * CHANNEL_DIVISOR
    o_r = tl.arange(0, BLOCK_R).to(tl.int64)
    o_c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = o_c < channels
    b_sum, b_product = load_sums(p_sums, o_r, o_c, programs, channels)
    b_sum, b_product = tl.sum(b_sum, axis=0), tl.sum(b_product, axis=0, keep_dims=True)
    b_product *= _load_rstd(p_statistics, channels, o_c, m_c, eps)
    tl.store(p_total + o_c, b_sum.to(tl.float32), mask=m_c)
    tl.store((p_total + channels + o_c)[None, :], b_product.to(tl.float32), mask=m_c[None, :])


@triton.jit
def grad_input_kernel(
    p_grad,
    p_x,
    p_statistics,
    p_weight,
    p_bias,
    p_total,
    p_grad_x,
    pixels,
    channels_quotient,
    eps,
    RELU: tl.constexpr,
    CHANNEL_DIVISOR: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """grad_x [P, C] of x [P, C], for grad [P, C] of the map and total [2, C], what add_sums_kernel
    made of it and of all other pixels that the statistics are of. statistics, weight and bias [C]
    are those of apply_kernel. Without RELU, grad is the part that passed ReLU already."""
    channels = channels_quotient * CHANNEL_DIVISOR
    o_c, m_c, o_x, m_x = _locate_tile(pixels, channels, BLOCK_P, BLOCK_C)
    b_g = tl.load(p_grad + o_x, mask=m_x, other=0.0).to(tl.float32)
    b_x = tl.load(p_x + o_x, mask=m_x, other=0.0).to(tl.float32)
    b_mean, b_rstd, b_scale = _load_factors(p_statistics, p_weight, channels, o_c, m_c, eps)
    b_centered = b_x - b_mean
    if RELU:
        b_out = _normalize(b_centered, b_scale, load_channels(p_bias, o_c, m_c))
        # NaN passes gradient, as in torch.
        b_g = tl.where(b_out <= 0.0, 0.0, b_g)
    count = tl.load(p_statistics + 2 * channels)
    b_grad_mean = load_channels(p_total, o_c, m_c) / count
    b_slope = b_rstd * load_channels(p_total + channels, o_c, m_c) / count
    b_grad_x = b_scale * (b_g - b_grad_mean - b_centered * b_slope)
    tl.store(p_grad_x + o_x, b_grad_x.to(p_grad_x.dtype.element_ty), mask=m_x)

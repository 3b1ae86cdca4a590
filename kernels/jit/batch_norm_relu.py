"""Kernels of batch_norm_relu: maps are matrices [P, C] of pixels and channels, dense, channels
innermost; all arithmetic is in float32, rounded once at the store; fixed order, bit-reproducible.

Sums over pixels take two steps. A program goes over tiles of pixels, of a block of channels, and
keeps a sum for every place in the tile; it adds these at the end only. Then one program adds the
sums of all programs, [programs, C], in float64. Moments are means and sums of squared deviations
from them, by Welford's update and Chan's merge: a difference of large sums would lose the variance.

The size C is a quotient times CHANNEL_DIVISOR: the product shows the compiler what divides the
offset of every pixel.
"""

import triton
import triton.language as tl


@triton.jit
def _locate_channels(channels, BLOCK_C: tl.constexpr):
    """Channels of a program, their mask, the program's place among the programs of these channels,
    and the number of these programs. Channels are innermost: programs that run together read rows
    as a whole. All is int64, as addresses are, but the last, which is int32 to spare registers."""
    channel_blocks = tl.cdiv(channels, BLOCK_C)
    i_program = tl.program_id(0).to(tl.int64)
    o_c = i_program % channel_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    return o_c, o_c < channels, i_program // channel_blocks, tl.num_programs(0) // channel_blocks


@triton.jit
def _locate_tile(pixels, channels, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """Channels and their mask, and offsets and mask [pixels, channels], of a program that has one
    tile. The first program has the last tile: the kernel before ended there, so the cache may still
    have it."""
    o_c, m_c, i_p, tiles = _locate_channels(channels, BLOCK_C)
    o_p = (tiles - 1 - i_p) * BLOCK_P + tl.arange(0, BLOCK_P)
    return o_c, m_c, o_p[:, None] * channels + o_c[None, :], (o_p < pixels)[:, None] & m_c[None, :]


@triton.jit
def _load_channels(p_values, o_c, m_c):
    """Values [C] of channels as [1, channels], in float32."""
    return tl.load(p_values + o_c, mask=m_c, other=0.0).to(tl.float32)[None, :]


@triton.jit
def _load_rstd(p_var, o_c, m_c, eps):
    """1 / std of channels, [1, channels]."""
    b_var = _load_channels(p_var, o_c, m_c)
    return tl.div_rn(tl.full(b_var.shape, 1.0, tl.float32), tl.sqrt_rn(b_var + eps))


@triton.jit
def _load_factors(p_mean, p_var, p_weight, o_c, m_c, eps):
    """Mean, 1 / std, and weight / std of channels, [1, channels] each."""
    b_rstd = _load_rstd(p_var, o_c, m_c, eps)
    return _load_channels(p_mean, o_c, m_c), b_rstd, b_rstd * _load_channels(p_weight, o_c, m_c)


@triton.jit
def _normalize(b_centered, b_scale, b_bias):
    """The value before residual and ReLU, which backward computes again for ReLU's mask. It is an
    explicit fma: the compiler fuses as the code around it suggests, and both must get the same
    bits."""
    return tl.fma(b_centered, tl.broadcast_to(b_scale, b_centered.shape), b_bias)


@triton.jit
def moments_kernel(
    p_x,
    p_moments,
    pixels,
    channels_quotient,
    CHANNEL_DIVISOR: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Moments [2, programs, C], float32, of x [P, C]: every program's means, less x's first pixel,
    and then every program's sums of squared deviations. Far from zero, float32 would round means
    too much to compare them."""
    channels = channels_quotient * CHANNEL_DIVISOR
    o_c, m_c, i_p, programs = _locate_channels(channels, BLOCK_C)
    b_count = tl.zeros([BLOCK_P], tl.float32)
    b_mean = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    b_square = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for first_p in tl.range(i_p * BLOCK_P, pixels, programs * BLOCK_P, num_stages=1):
        o_p = first_p + tl.arange(0, BLOCK_P)
        m_p = o_p < pixels
        m_x = m_p[:, None] & m_c[None, :]
        o_x = o_p[:, None] * channels + o_c[None, :]
        b_x = tl.load(p_x + o_x, mask=m_x, other=0.0).to(tl.float32)
        b_count += tl.where(m_p, 1.0, 0.0)
        b_step = 1.0 / tl.maximum(b_count, 1.0)
        b_change = tl.where(m_p[:, None], b_x - b_mean, 0.0)
        b_mean += b_change * b_step[:, None]
        b_square += b_change * (b_x - b_mean)

    b_mean -= _load_channels(p_x, o_c, m_c)
    b_merged = tl.sum(b_mean * b_count[:, None], axis=0) / tl.sum(b_count)
    b_change = b_mean - b_merged[None, :]
    b_square += b_count[:, None] * b_change * b_change
    p_moments += i_p * channels
    tl.store(p_moments + o_c, b_merged, mask=m_c)
    tl.store(p_moments + programs * channels + o_c, tl.sum(b_square, axis=0), mask=m_c)


@triton.jit
def _load_sums(p_sums, o_r, o_c, programs, channels):
    """Both parts of sums [2, programs, C], as [programs, channels] in float64."""
    m_sums = (o_r < programs)[:, None] & (o_c < channels)[None, :]
    p_sums += o_r[:, None] * channels + o_c[None, :]
    b_first = tl.load(p_sums, mask=m_sums, other=0.0)
    b_second = tl.load(p_sums + programs * channels, mask=m_sums, other=0.0)
    return b_first.to(tl.float64), b_second.to(tl.float64)


@triton.jit
def merge_moments_kernel(
    p_x,
    p_moments,
    p_mean,
    p_var,
    pixels,
    channels_quotient,
    programs,
    CHANNEL_DIVISOR: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Mean [C] and biased variance [C], float32, of moments [2, programs, C], which moments_kernel
    made of x [P, C] in tiles of BLOCK_P pixels."""
    channels = channels_quotient * CHANNEL_DIVISOR
    o_r = tl.arange(0, BLOCK_R).to(tl.int64)
    o_c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    b_mean, b_square = _load_sums(p_moments, o_r, o_c, programs, channels)
    # Every program has a whole tile in every round but the last.
    rounds = pixels // (programs * BLOCK_P)
    b_left = pixels - (rounds * programs + o_r) * BLOCK_P
    b_count = rounds * BLOCK_P + tl.minimum(tl.maximum(b_left, 0), BLOCK_P)
    b_count = tl.where(o_r < programs, b_count, 0).to(tl.float64)[:, None]
    b_merged = tl.sum(b_mean * b_count, axis=0) / pixels
    b_change = b_mean - b_merged[None, :]
    b_var = tl.sum(b_square + b_count * b_change * b_change, axis=0) / pixels
    b_merged += tl.load(p_x + o_c, mask=o_c < channels, other=0.0).to(tl.float32)
    tl.store(p_mean + o_c, b_merged.to(tl.float32), mask=o_c < channels)
    tl.store(p_var + o_c, b_var.to(tl.float32), mask=o_c < channels)


@triton.jit
def apply_kernel(
    p_x,
    p_mean,
    p_var,
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
    """out [P, C]: x [P, C] normalised by mean and var [C], times weight [C], plus bias [C] and, if
    HAS_RESIDUAL, residual [P, C]; with RELU not below zero."""
    channels = channels_quotient * CHANNEL_DIVISOR
    o_c, m_c, o_x, m_x = _locate_tile(pixels, channels, BLOCK_P, BLOCK_C)
    b_x = tl.load(p_x + o_x, mask=m_x, other=0.0).to(tl.float32)
    b_mean, _, b_scale = _load_factors(p_mean, p_var, p_weight, o_c, m_c, eps)
    b_out = _normalize(b_x - b_mean, b_scale, _load_channels(p_bias, o_c, m_c))
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
    p_mean,
    p_var,
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

    x and residual [P, C], mean, var, weight and bias [C] are what apply_kernel takes: from them
    follows where ReLU passes."""
    channels = channels_quotient * CHANNEL_DIVISOR
    o_c, m_c, i_p, programs = _locate_channels(channels, BLOCK_C)
    b_mean, _, b_scale = _load_factors(p_mean, p_var, p_weight, o_c, m_c, eps)
    b_bias = _load_channels(p_bias, o_c, m_c)
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
    p_var,
    p_grad_bias,
    p_grad_weight,
    channels_quotient,
    programs,
    eps,
    CHANNEL_DIVISOR: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """grad_bias [C] and grad_weight [C], float32: the sums [2, programs, C] of grad_sums_kernel
    added over programs, the second times 1 / std of var [C]."""
    channels = channels_quotient * CHANNEL_DIVISOR
    o_r = tl.arange(0, BLOCK_R).to(tl.int64)
    o_c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = o_c < channels
    b_sum, b_product = _load_sums(p_sums, o_r, o_c, programs, channels)
    b_sum, b_product = tl.sum(b_sum, axis=0), tl.sum(b_product, axis=0, keep_dims=True)
    b_product *= _load_rstd(p_var, o_c, m_c, eps)
    tl.store(p_grad_bias + o_c, b_sum.to(tl.float32), mask=m_c)
    tl.store((p_grad_weight + o_c)[None, :], b_product.to(tl.float32), mask=m_c[None, :])


@triton.jit
def grad_input_kernel(
    p_grad,
    p_x,
    p_mean,
    p_var,
    p_weight,
    p_bias,
    p_grad_bias,
    p_grad_weight,
    p_grad_x,
    pixels,
    channels_quotient,
    eps,
    RELU: tl.constexpr,
    CHANNEL_DIVISOR: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """grad_x [P, C] of x [P, C], for grad [P, C] of the map and what add_sums_kernel made of it:
    grad_bias and grad_weight [C]. mean, var, weight and bias [C] are those of apply_kernel. Without
    RELU, grad is the part that passed ReLU already."""
    channels = channels_quotient * CHANNEL_DIVISOR
    o_c, m_c, o_x, m_x = _locate_tile(pixels, channels, BLOCK_P, BLOCK_C)
    b_g = tl.load(p_grad + o_x, mask=m_x, other=0.0).to(tl.float32)
    b_x = tl.load(p_x + o_x, mask=m_x, other=0.0).to(tl.float32)
    b_mean, b_rstd, b_scale = _load_factors(p_mean, p_var, p_weight, o_c, m_c, eps)
    b_centered = b_x - b_mean
    if RELU:
        b_out = _normalize(b_centered, b_scale, _load_channels(p_bias, o_c, m_c))
        # NaN passes gradient, as in torch.
        b_g = tl.where(b_out <= 0.0, 0.0, b_g)
    b_grad_mean = _load_channels(p_grad_bias, o_c, m_c) / pixels
    b_slope = b_rstd * _load_channels(p_grad_weight, o_c, m_c) / pixels
    b_grad_x = b_scale * (b_g - b_grad_mean - b_centered * b_slope)
    tl.store(p_grad_x + o_x, b_grad_x.to(p_grad_x.dtype.element_ty), mask=m_x)

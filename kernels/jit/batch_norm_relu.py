"""Kernels of batch_norm_relu: maps are matrices [P, C] of pixels and channels, dense, channels
innermost; all arithmetic is in float32, rounded once at the store; fixed order, bit-reproducible.

What is summed over pixels is summed in two steps. A program goes over tiles of pixels, of a block
of channels, and keeps a sum for every place in the tile; it adds these at the end only. Then the
sums of all programs, [programs, C], are added in float64. Moments are means and sums of squared
deviations from them, by Welford's update and Chan's merge: a difference of large sums would lose
the variance.
"""

import triton
import triton.language as tl


@triton.jit
def _locate_channels(channels, BLOCK_C: tl.constexpr):
    """Channels of a program, their mask, its place among the programs of these channels, and how
    many these are. Channels are innermost: programs that run together read rows as a whole. In
    int64, as all addresses are, but the last, to spare registers."""
    channel_blocks = tl.cdiv(channels, BLOCK_C)
    i_program = tl.program_id(0).to(tl.int64)
    o_c = i_program % channel_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    return o_c, o_c < channels, i_program // channel_blocks, tl.num_programs(0) // channel_blocks


@triton.jit
def _locate_tile(pixels, channels, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """Channels and their mask, and offsets and mask [pixels, channels], of the one tile of a
    program. The last tile first: the pass before ended there, so the cache may still have it."""
    o_c, m_c, i_p, tiles = _locate_channels(channels, BLOCK_C)
    o_p = (tiles - 1 - i_p) * BLOCK_P + tl.arange(0, BLOCK_P)
    return o_c, m_c, o_p[:, None] * channels + o_c[None, :], (o_p < pixels)[:, None] & m_c[None, :]


@triton.jit
def _load_channels(p_values, o_c, m_c):
    return tl.load(p_values + o_c, mask=m_c, other=0.0).to(tl.float32)[None, :]


@triton.jit
def _load_rstd(p_var, o_c, m_c, eps):
    b_var = _load_channels(p_var, o_c, m_c)
    return tl.div_rn(tl.full(b_var.shape, 1.0, tl.float32), tl.sqrt_rn(b_var + eps))


@triton.jit
def _load_factors(p_mean, p_var, p_weight, o_c, m_c, eps):
    """mean, 1 / std, and weight / std of channels."""
    b_rstd = _load_rstd(p_var, o_c, m_c, eps)
    return _load_channels(p_mean, o_c, m_c), b_rstd, b_rstd * _load_channels(p_weight, o_c, m_c)


@triton.jit
def _normalize(b_centered, b_scale, b_bias):
    """The value before residual and ReLU, in forward and, for ReLU's mask, in backward. An explicit
    fma: both shall get the same bits, and the compiler fuses as the code around it suggests."""
    return tl.fma(b_centered, tl.broadcast_to(b_scale, b_centered.shape), b_bias)


@triton.jit
def moments_kernel(
    p_z,
    p_moments,
    pixels,
    channels_quotient,
    CHANNEL_DIVISOR: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Means, less the first pixel, and behind those of all programs sums of squared deviations:
    [2, programs, C]. Far from zero float32 would round means too much to compare them."""
    # A product shows the compiler what divides the offset of every pixel.
    channels = channels_quotient * CHANNEL_DIVISOR
    o_c, m_c, i_p, programs = _locate_channels(channels, BLOCK_C)
    b_count = tl.zeros([BLOCK_P], tl.float32)
    b_mean = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    b_square = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for first_p in tl.range(i_p * BLOCK_P, pixels, programs * BLOCK_P, num_stages=1):
        o_p = first_p + tl.arange(0, BLOCK_P)
        m_p = o_p < pixels
        m_z = m_p[:, None] & m_c[None, :]
        o_z = o_p[:, None] * channels + o_c[None, :]
        b_z = tl.load(p_z + o_z, mask=m_z, other=0.0).to(tl.float32)
        b_count += tl.where(m_p, 1.0, 0.0)
        b_step = 1.0 / tl.maximum(b_count, 1.0)
        b_change = tl.where(m_p[:, None], b_z - b_mean, 0.0)
        b_mean += b_change * b_step[:, None]
        b_square += b_change * (b_z - b_mean)

    b_mean -= _load_channels(p_z, o_c, m_c)
    b_merged = tl.sum(b_mean * b_count[:, None], axis=0) / tl.sum(b_count)
    b_change = b_mean - b_merged[None, :]
    b_square += b_count[:, None] * b_change * b_change
    p_moments += i_p * channels
    tl.store(p_moments + o_c, b_merged, mask=m_c)
    tl.store(p_moments + programs * channels + o_c, tl.sum(b_square, axis=0), mask=m_c)


@triton.jit
def _load_sums(p_sums, o_r, o_c, programs, channels):
    """Both sums of all programs, [programs, channels], in float64."""
    m_sums = (o_r < programs)[:, None] & (o_c < channels)[None, :]
    p_sums += o_r[:, None] * channels + o_c[None, :]
    b_first = tl.load(p_sums, mask=m_sums, other=0.0)
    b_second = tl.load(p_sums + programs * channels, mask=m_sums, other=0.0)
    return b_first.to(tl.float64), b_second.to(tl.float64)


@triton.jit
def merge_moments_kernel(
    p_z,
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
    """Mean and biased variance [C] of what moments_kernel leaves, whose tiles are of BLOCK_P
    pixels."""
    channels = channels_quotient * CHANNEL_DIVISOR
    o_r = tl.arange(0, BLOCK_R).to(tl.int64)
    o_c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    b_mean, b_square = _load_sums(p_moments, o_r, o_c, programs, channels)
    # Every program has as many whole tiles, but in the last round.
    rounds = pixels // (programs * BLOCK_P)
    b_left = pixels - (rounds * programs + o_r) * BLOCK_P
    b_count = rounds * BLOCK_P + tl.minimum(tl.maximum(b_left, 0), BLOCK_P)
    b_count = tl.where(o_r < programs, b_count, 0).to(tl.float64)[:, None]
    b_merged = tl.sum(b_mean * b_count, axis=0) / pixels
    b_change = b_mean - b_merged[None, :]
    b_var = tl.sum(b_square + b_count * b_change * b_change, axis=0) / pixels
    b_merged += tl.load(p_z + o_c, mask=o_c < channels, other=0.0).to(tl.float32)
    tl.store(p_mean + o_c, b_merged.to(tl.float32), mask=o_c < channels)
    tl.store(p_var + o_c, b_var.to(tl.float32), mask=o_c < channels)


@triton.jit
def apply_kernel(
    p_z,
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
    channels = channels_quotient * CHANNEL_DIVISOR
    o_c, m_c, o_z, m_z = _locate_tile(pixels, channels, BLOCK_P, BLOCK_C)
    b_z = tl.load(p_z + o_z, mask=m_z, other=0.0).to(tl.float32)
    b_mean, _, b_scale = _load_factors(p_mean, p_var, p_weight, o_c, m_c, eps)
    b_out = _normalize(b_z - b_mean, b_scale, _load_channels(p_bias, o_c, m_c))
    if HAS_RESIDUAL:
        b_out += tl.load(p_residual + o_z, mask=m_z, other=0.0).to(tl.float32)
    if RELU:
        # NaN stays, as in torch.
        b_out = tl.where(b_out < 0.0, 0.0, b_out)
    tl.store(p_out + o_z, b_out.to(p_out.dtype.element_ty), mask=m_z)


@triton.jit
def grad_sums_kernel(
    p_grad,
    p_z,
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
    """Sums of g, the gradient that passes ReLU, and behind those of all programs sums of
    g * (z - mean): [2, programs, C]. With a residual it writes g too."""
    channels = channels_quotient * CHANNEL_DIVISOR
    o_c, m_c, i_p, programs = _locate_channels(channels, BLOCK_C)
    b_mean, _, b_scale = _load_factors(p_mean, p_var, p_weight, o_c, m_c, eps)
    b_bias = _load_channels(p_bias, o_c, m_c)
    b_sum = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    b_product = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for first_p in tl.range(i_p * BLOCK_P, pixels, programs * BLOCK_P, num_stages=1):
        o_p = first_p + tl.arange(0, BLOCK_P)
        m_z = (o_p < pixels)[:, None] & m_c[None, :]
        o_z = o_p[:, None] * channels + o_c[None, :]
        b_g = tl.load(p_grad + o_z, mask=m_z, other=0.0).to(tl.float32)
        b_centered = tl.load(p_z + o_z, mask=m_z, other=0.0).to(tl.float32) - b_mean
        if RELU:
            b_out = _normalize(b_centered, b_scale, b_bias)
            if HAS_RESIDUAL:
                b_out += tl.load(p_residual + o_z, mask=m_z, other=0.0).to(tl.float32)
            # NaN passes gradient, as in torch.
            b_g = tl.where(b_out <= 0.0, 0.0, b_g)
        if HAS_RESIDUAL:
            b_grad_residual = b_g.to(p_grad_residual.dtype.element_ty)
            tl.store(p_grad_residual + o_z, b_grad_residual, mask=m_z)
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
    p_z,
    p_mean,
    p_var,
    p_weight,
    p_bias,
    p_grad_bias,
    p_grad_weight,
    p_grad_z,
    pixels,
    channels_quotient,
    eps,
    RELU: tl.constexpr,
    CHANNEL_DIVISOR: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """With a residual, grad is what passed ReLU already."""
    channels = channels_quotient * CHANNEL_DIVISOR
    o_c, m_c, o_z, m_z = _locate_tile(pixels, channels, BLOCK_P, BLOCK_C)
    b_g = tl.load(p_grad + o_z, mask=m_z, other=0.0).to(tl.float32)
    b_z = tl.load(p_z + o_z, mask=m_z, other=0.0).to(tl.float32)
    b_mean, b_rstd, b_scale = _load_factors(p_mean, p_var, p_weight, o_c, m_c, eps)
    b_centered = b_z - b_mean
    if RELU:
        b_out = _normalize(b_centered, b_scale, _load_channels(p_bias, o_c, m_c))
        # NaN passes gradient, as in torch.
        b_g = tl.where(b_out <= 0.0, 0.0, b_g)
    b_grad_mean = _load_channels(p_grad_bias, o_c, m_c) / pixels
    b_slope = b_rstd * _load_channels(p_grad_weight, o_c, m_c) / pixels
    b_grad_z = b_scale * (b_g - b_grad_mean - b_centered * b_slope)
    tl.store(p_grad_z + o_z, b_grad_z.to(p_grad_z.dtype.element_ty), mask=m_z)

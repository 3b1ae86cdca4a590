"""Kernels of the statistics of batch_norm_relu: maps are matrices [P, C] of pixels and channels,
dense, channels innermost; fixed order, bit-reproducible.

Sums over pixels take two steps. A program goes over tiles of pixels, of a block of channels, and
keeps a sum for every place in the tile; it adds these at the end only. Then one program adds the
sums of all programs, [programs, C], in float64. Moments are means and sums of squared deviations
from them, by Welford's update and Chan's merge: a difference of large sums would lose the variance.

Statistics are [2 C + 1], float32: the mean of every channel, its biased variance, and of how many
values they are.

The size C is a quotient times CHANNEL_DIVISOR: the product shows the compiler what divides the
offset of every pixel.
"""

import triton
import triton.language as tl


@triton.jit
def locate_channels(channels, BLOCK_C: tl.constexpr):
    """Channels of a program, their mask, the program's place among the programs of these channels,
    and the number of these programs. Channels are innermost: programs that run together read rows
    as a whole. All is int64, as addresses are, but the last, which is int32 to spare registers."""
    channel_blocks = tl.cdiv(channels, BLOCK_C)
    i_program = tl.program_id(0).to(tl.int64)
    o_c = i_program % channel_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    return o_c, o_c < channels, i_program // channel_blocks, tl.num_programs(0) // channel_blocks


@triton.jit
def load_channels(p_values, o_c, m_c):
    """Values [C] of channels as [1, channels], in float32."""
    return tl.load(p_values + o_c, mask=m_c, other=0.0).to(tl.float32)[None, :]


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
    o_c, m_c, i_p, programs = locate_channels(channels, BLOCK_C)
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

    b_mean -= load_channels(p_x, o_c, m_c)
    b_merged = tl.sum(b_mean * b_count[:, None], axis=0) / tl.sum(b_count)
    b_change = b_mean - b_merged[None, :]
    b_square += b_count[:, None] * b_change * b_change
    p_moments += i_p * channels
    tl.store(p_moments + o_c, b_merged, mask=m_c)
    tl.store(p_moments + programs * channels + o_c, tl.sum(b_square, axis=0), mask=m_c)


@triton.jit
def load_sums(p_sums, o_r, o_c, programs, channels):
    """Both parts of sums [2, programs, C], as [programs, channels] in float64."""
    m_sums = (o_r < programs)[:, None] & (o_c < channels)[None, :]
    p_sums += o_r[:, None] * channels + o_c[None, :]
    b_first = tl.load(p_sums, mask=m_sums, other=0.0)
    b_second = tl.load(p_sums + programs * channels, mask=m_sums, other=0.0)
    return b_first.to(tl.float64), b_second.to(tl.float64)


@triton.jit
def _move(p_running, b_to, o_c, m_c, momentum):
    """Running statistics [C] towards those of channels."""
    b_running = tl.load(p_running + o_c, mask=m_c, other=0.0).to(tl.float32)
    b_running += momentum * (b_to - b_running)
    tl.store(p_running + o_c, b_running.to(p_running.dtype.element_ty), mask=m_c)


@triton.jit
def _store_statistics(
    p_statistics,
    p_mean,
    p_var,
    p_batches,
    b_mean,
    b_var,
    count,
    momentum,
    channels,
    o_c,
    m_c,
    HAS_MEAN: tl.constexpr,
    HAS_VAR: tl.constexpr,
    HAS_BATCHES: tl.constexpr,
):
    """Statistics of channels, float32 values and count; running ones that are there are moved: mean
    [C], unbiased variance [C], and the number of batches [], int64. Nothing moves towards the
    variance of less than two values."""
    tl.store(p_statistics + o_c, b_mean, mask=m_c)
    tl.store(p_statistics + channels + o_c, b_var, mask=m_c)
    is_first = tl.program_id(0) == 0
    tl.store(p_statistics + 2 * channels, count, mask=is_first)
    momentum = tl.where(count > 1.0, momentum, 0.0)
    if HAS_MEAN:
        _move(p_mean, b_mean, o_c, m_c, momentum)
    if HAS_VAR:
        b_unbiased = b_var * (count / tl.maximum(count - 1.0, 1.0))
        _move(p_var, b_unbiased, o_c, m_c, momentum)
    if HAS_BATCHES:
        tl.store(p_batches, tl.load(p_batches) + 1, mask=is_first)


@triton.jit
def merge_moments_kernel(
    p_x,
    p_moments,
    p_statistics,
    p_running_mean,
    p_running_var,
    p_batches,
    pixels,
    channels_quotient,
    programs,
    momentum,
    HAS_MEAN: tl.constexpr,
    HAS_VAR: tl.constexpr,
    HAS_BATCHES: tl.constexpr,
    CHANNEL_DIVISOR: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Statistics of moments [2, programs, C], which moments_kernel made of x [P, C] in tiles of
    BLOCK_P pixels; running ones are moved towards them as in _store_statistics."""
    channels = channels_quotient * CHANNEL_DIVISOR
    o_r = tl.arange(0, BLOCK_R).to(tl.int64)
    o_c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = o_c < channels
    b_mean, b_square = load_sums(p_moments, o_r, o_c, programs, channels)
    # Every program has a whole tile in every round but the last.
    rounds = pixels // (programs * BLOCK_P)
    b_left = pixels - (rounds * programs + o_r) * BLOCK_P
    b_count = rounds * BLOCK_P + tl.minimum(tl.maximum(b_left, 0), BLOCK_P)
    b_count = tl.where(o_r < programs, b_count, 0).to(tl.float64)[:, None]
    b_merged = tl.sum(b_mean * b_count, axis=0) / pixels
    b_change = b_mean - b_merged[None, :]
    b_var = tl.sum(b_square + b_count * b_change * b_change, axis=0) / pixels
    b_merged += tl.load(p_x + o_c, mask=m_c, other=0.0).to(tl.float32)
    count = (tl.zeros([], tl.int64) + pixels).to(tl.float32)
    _store_statistics(
        p_statistics,
        p_running_mean,
        p_running_var,
        p_batches,
        b_merged.to(tl.float32),
        b_var.to(tl.float32),
        count,
        momentum,
        channels,
        o_c,
        m_c,
        HAS_MEAN,
        HAS_VAR,
        HAS_BATCHES,
    )


@triton.jit
def merge_statistics_kernel(
    p_parts,
    p_statistics,
    p_running_mean,
    p_running_var,
    p_batches,
    channels_quotient,
    parts,
    momentum,
    HAS_MEAN: tl.constexpr,
    HAS_VAR: tl.constexpr,
    HAS_BATCHES: tl.constexpr,
    CHANNEL_DIVISOR: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Statistics of all values together, of parts [parts, 2 C + 1], any of which may have none;
    running ones are moved towards them as in _store_statistics."""
    channels = channels_quotient * CHANNEL_DIVISOR
    o_r = tl.arange(0, BLOCK_R)
    o_c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = o_c < channels
    p_part = p_parts + o_r * (2 * channels + 1)
    b_count = tl.load(p_part + 2 * channels, mask=o_r < parts, other=0.0).to(tl.float64)
    m_parts = (o_r < parts)[:, None] & m_c[None, :]
    p_part = p_part[:, None] + o_c[None, :]
    b_mean = tl.load(p_part, mask=m_parts, other=0.0).to(tl.float64)
    b_var = tl.load(p_part + channels, mask=m_parts, other=0.0).to(tl.float64)
    count = tl.sum(b_count)
    b_share = (b_count / tl.maximum(count, 1.0))[:, None]
    b_merged = tl.sum(b_mean * b_share, axis=0)
    b_change = b_mean - b_merged[None, :]
    b_var = tl.sum((b_var + b_change * b_change) * b_share, axis=0)
    _store_statistics(
        p_statistics,
        p_running_mean,
        p_running_var,
        p_batches,
        b_merged.to(tl.float32),
        b_var.to(tl.float32),
        count.to(tl.float32),
        momentum,
        channels,
        o_c,
        m_c,
        HAS_MEAN,
        HAS_VAR,
        HAS_BATCHES,
    )

"""Kernels of dilated_conv2d: implicit matrix products on tensor cores, fixed order, no atomics.

Maps are [pixels, channels] matrices: pixels of all images are counted through, and what a tap reads
lies a constant number of pixels away, wherever it is on the map. The convolution sums over taps and
channels; the input's gradient is the same sum at opposite taps, the weight's a sum over pixels.

Tuning leaves the order of sums alone: configurations differ in what results a program has, not in
what it adds at a time.
"""

from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl
from triton import JITFunction, knobs
from triton.runtime.autotuner import Autotuner

from ..launch import shared_bytes_of_a_block

# The interpreter multiplies bfloat16 as the integers that hold it.
_UPCAST = tl.constexpr(knobs.runtime.interpret)

# BLOCK_M, BLOCK_N, warps and stages that tuning chooses among, the last one anywhere: it takes no
# more than the 64 KB of shared memory that the least of all GPUs have.
TILES = ((128, 256, 8, 4), (128, 128, 8, 3), (128, 64, 4, 3), (64, 64, 4, 3))
# Where a sum runs over pixels, both operands have to be transposed, which tensor cores since sm_90
# do not do for 32 bits; two warps get the products of sm_80, which take operands either way.
TF32_GRAD_WEIGHT_TILES = ((64, 128, 2, 4), (64, 64, 2, 4))
IEEE_TILES = ((64, 64, 4, 3),)

_KEY = (
    "channels_quotient",
    "out_channels_quotient",
    "channels",
    "out_channels",
    "size_class",
    "TRANSPOSED",
    "CHANNEL_DIVISOR",
    "OUT_CHANNEL_DIVISOR",
    "BLOCK_K",
    "TILE_W",
)


def _that_fit(
    configs: list[triton.Config], arguments: dict[str, Any], **constants: Any
) -> list[triton.Config]:
    """The configurations whose operands fit into the shared memory of the current GPU."""
    available = shared_bytes_of_a_block()
    if available is None:
        return configs
    # Of each operand a block for every stage but the one that is computed on, whose place chips of
    # compute capability 9 and 10 take as well: they have room for all.
    x = arguments["p_x"] if "p_x" in arguments else arguments["d_x"].base
    of_each = constants["BLOCK_K"] * x.element_size()
    return [
        config
        for config in configs
        if (config.num_stages - 1) * (config.kwargs["BLOCK_M"] + config.kwargs["BLOCK_N"]) * of_each
        <= available
    ] or configs[-1:]


def _tuned(
    kernel: JITFunction,
    tiles: tuple[tuple[int, int, int, int], ...],
    pre_hook: Callable[[dict[str, Any]], None] | None = None,
) -> Autotuner:
    if knobs.runtime.interpret:
        # Nothing can be timed: the smallest.
        tiles = tiles[-1:]
    configs = [
        triton.Config({"BLOCK_M": m, "BLOCK_N": n}, warps, stages, pre_hook=pre_hook)
        for m, n, warps, stages in tiles
    ]
    key = [name for name in kernel.arg_names if name in _KEY]
    prune = {"early_config_prune": _that_fit}
    return triton.autotune(configs, key, prune_configs_by=prune, cache_results=True)(kernel)


@triton.jit
def _channel_count(quotient, DIVISOR: tl.constexpr, LONG_CHANNELS: tl.constexpr):
    """quotient * DIVISOR, in int64 with LONG_CHANNELS."""
    if LONG_CHANNELS:
        # Not .to: a quotient of 1 is a constant.
        return quotient * tl.full([], DIVISOR, tl.int64)
    else:
        # The product shows the compiler what divides the offsets of pixels and filters.
        return quotient * DIVISOR


@triton.jit
def _dot(b_left, b_right, b_sum, PRECISION: tl.constexpr):
    """b_sum plus the product of both matrices, in float32."""
    if _UPCAST:
        b_left = b_left.to(tl.float32)
        b_right = b_right.to(tl.float32)
    return tl.dot(b_left, b_right, b_sum, input_precision=PRECISION)


@triton.jit
def _rows_and_cols(first, height, width, BLOCK: tl.constexpr):
    """Rows and columns on their maps of ``BLOCK`` pixels from ``first`` on, in int32."""
    first_row = (first // width % height).to(tl.int32)
    col = (first % width).to(tl.int32) + tl.arange(0, BLOCK)
    return (first_row + col // width) % height, col % width


@triton.jit
def _taps_on_map(row, col, height, width, dilation):
    """Bit 3 * ky + kx: whether the pixel's tap is on the map."""
    b_taps = row * 0
    for tap in tl.static_range(9):
        tap_row = row + (tap // 3 - 1) * dilation
        tap_col = col + (tap % 3 - 1) * dilation
        m_row = (tap_row >= 0) & (tap_row < height)
        m_tap = m_row & (tap_col >= 0) & (tap_col < width)
        b_taps |= m_tap.to(tl.int32) << tap
    return b_taps


@triton.jit
def _tap_distance(tap, width, dilation):
    """Pixels from a pixel to what its tap reads, int64."""
    return ((tap // 3 - 1).to(tl.int64) * width + (tap % 3 - 1)) * dilation


@triton.jit(do_not_specialize=["size_class"])
def _conv_kernel(
    p_x,
    p_weight,
    p_bias,
    p_residual,
    p_out,
    pixels,
    channels_quotient,
    out_channels_quotient,
    height,
    width,
    dilation,
    size_class,
    TRANSPOSED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    RELU: tl.constexpr,
    PRECISION: tl.constexpr,
    CHANNEL_DIVISOR: tl.constexpr,
    OUT_CHANNEL_DIVISOR: tl.constexpr,
    LONG_CHANNELS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """out [pixels, O]: x [pixels, C] convolved with weight [O, 3, 3, C], or [C, 3, 3, O] if
    TRANSPOSED; plus bias [O] if HAS_BIAS and residual [pixels, O] if HAS_RESIDUAL; with RELU not
    below zero. C are the channels, O the out channels. A negative dilation takes opposite taps."""
    channels = _channel_count(channels_quotient, CHANNEL_DIVISOR, LONG_CHANNELS)
    out_channels = _channel_count(out_channels_quotient, OUT_CHANNEL_DIVISOR, LONG_CHANNELS)
    # Output channels innermost: programs that run together read the same pixels.
    i_program = tl.program_id(0)
    out_blocks = tl.cdiv(out_channels, BLOCK_N)
    first_n = (i_program % out_blocks).to(tl.int64) * BLOCK_N
    first_m = (i_program // out_blocks).to(tl.int64) * BLOCK_M
    o_m = tl.arange(0, BLOCK_M)
    o_n = tl.arange(0, BLOCK_N)
    o_k = tl.arange(0, BLOCK_K)
    m_m = first_m + o_m < pixels
    m_n = first_n + o_n < out_channels

    row, col = _rows_and_cols(first_m, height, width, BLOCK_M)
    b_taps = tl.where(m_m, _taps_on_map(row, col, height, width, dilation), 0)
    o_x = o_m[:, None] * channels + o_k[None, :]
    if TRANSPOSED:
        o_weight = o_k[:, None] * (9 * out_channels) + o_n[None, :]
        p_weight += first_n
    else:
        o_weight = o_k[:, None] + o_n[None, :] * (9 * channels)
        p_weight += first_n * (9 * channels)

    # Residual and bias are loaded here, where no registers hold the sum yet.
    o_out = o_m[:, None] * out_channels + o_n[None, :]
    m_out = m_m[:, None] & m_n[None, :]
    first_out = first_m * out_channels + first_n
    b_out = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    if HAS_RESIDUAL:
        b_out += tl.load(p_residual + first_out + o_out, mask=m_out, other=0.0).to(tl.float32)
    if HAS_BIAS:
        b_out += tl.load(p_bias + first_n + o_n, mask=m_n, other=0.0).to(tl.float32)[None, :]
    # Taps innermost: they read nearly the same pixels.
    for i in tl.range(0, 9 * tl.cdiv(channels, BLOCK_K)):
        tap = i % 9
        first_k = i // 9 * BLOCK_K
        m_k = first_k + o_k < channels
        p_tap = p_x + (first_m + _tap_distance(tap, width, dilation)) * channels + first_k
        m_x = (b_taps >> tap & 1 != 0)[:, None] & m_k[None, :]
        b_x = tl.load(p_tap + o_x, mask=m_x, other=0.0)
        if TRANSPOSED:
            p_filter = p_weight + (first_k.to(tl.int64) * 9 + tap) * out_channels
        else:
            p_filter = p_weight + (tap.to(tl.int64) * channels + first_k)
        b_weight = tl.load(p_filter + o_weight, mask=m_k[:, None] & m_n[None, :], other=0.0)
        b_out = _dot(b_x, b_weight, b_out, PRECISION)

    if RELU:
        # NaN stays, as in torch.
        b_out = tl.where(b_out < 0.0, 0.0, b_out)
    tl.store(p_out + first_out + o_out, b_out.to(p_out.dtype.element_ty), mask=m_out)


@triton.jit(do_not_specialize=["size_class"])
def _grad_weight_kernel(
    p_grad,
    p_x,
    p_grad_weight,
    pixels,
    split_pixels,
    channels_quotient,
    out_channels_quotient,
    height,
    width,
    dilation,
    size_class,
    PRECISION: tl.constexpr,
    CHANNEL_DIVISOR: tl.constexpr,
    OUT_CHANNEL_DIVISOR: tl.constexpr,
    LONG_CHANNELS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """grad_weight [splits, O, 3, 3, C] for grad [pixels, O] and x [pixels, C]: sums over
    ``split_pixels`` pixels each, which BLOCK_K divides. C are the channels, O the out channels."""
    channels = _channel_count(channels_quotient, CHANNEL_DIVISOR, LONG_CHANNELS)
    out_channels = _channel_count(out_channels_quotient, OUT_CHANNEL_DIVISOR, LONG_CHANNELS)
    # Taps innermost: programs that run together read the same pixels.
    i_program = tl.program_id(0)
    tap = i_program % 9
    i_program //= 9
    blocks = tl.cdiv(channels, BLOCK_N)
    first_n = (i_program % blocks).to(tl.int64) * BLOCK_N
    i_program //= blocks
    out_blocks = tl.cdiv(out_channels, BLOCK_M)
    first_m = (i_program % out_blocks).to(tl.int64) * BLOCK_M
    i_split = (i_program // out_blocks).to(tl.int64)

    o_m = tl.arange(0, BLOCK_M)
    o_n = tl.arange(0, BLOCK_N)
    o_k = tl.arange(0, BLOCK_K)
    m_m = first_m + o_m < out_channels
    m_n = first_n + o_n < channels
    begin = i_split * split_pixels
    end = tl.minimum(begin + split_pixels, pixels)
    row, col = _rows_and_cols(begin, height, width, BLOCK_K)
    tap_rows = (tap // 3 - 1) * dilation
    tap_cols = (tap % 3 - 1) * dilation
    # The next block of pixels is so many rows and columns further: the loop has no division.
    step_rows = BLOCK_K // width % height
    step_cols = BLOCK_K % width

    o_grad = o_k[None, :] * out_channels + o_m[:, None]
    o_x = o_k[:, None] * channels + o_n[None, :]
    p_grad += first_m
    p_x += _tap_distance(tap, width, dilation) * channels + first_n
    b_grad_weight = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for i in tl.range(0, tl.cdiv(end - begin, BLOCK_K)):
        first_k = begin + i * BLOCK_K
        m_k = o_k < tl.minimum(end - first_k, BLOCK_K).to(tl.int32)
        b_grad = tl.load(
            p_grad + first_k * out_channels + o_grad, mask=m_k[None, :] & m_m[:, None], other=0.0
        )
        tap_row = row + tap_rows
        tap_col = col + tap_cols
        m_row = (tap_row >= 0) & (tap_row < height)
        m_tap = m_k & m_row & (tap_col >= 0) & (tap_col < width)
        b_x = tl.load(p_x + first_k * channels + o_x, mask=m_tap[:, None] & m_n[None, :], other=0.0)
        b_grad_weight = _dot(b_grad, b_x, b_grad_weight, PRECISION)
        col += step_cols
        m_wrap = col >= width
        col = tl.where(m_wrap, col - width, col)
        row += step_rows + m_wrap.to(tl.int32)
        row = tl.where(row >= height, row - height, row)

    first_out = ((i_split * out_channels + first_m) * 9 + tap) * channels + first_n
    o_out = o_m[:, None] * (9 * channels) + o_n[None, :]
    tl.store(
        p_grad_weight + first_out + o_out,
        b_grad_weight.to(p_grad_weight.dtype.element_ty),
        mask=m_m[:, None] & m_n[None, :],
    )


conv_kernel = _tuned(_conv_kernel, TILES)
conv_ieee_kernel = _tuned(_conv_kernel, IEEE_TILES)
grad_weight_kernel = _tuned(_grad_weight_kernel, TILES)
grad_weight_tf32_kernel = _tuned(_grad_weight_kernel, TF32_GRAD_WEIGHT_TILES)
grad_weight_ieee_kernel = _tuned(_grad_weight_kernel, IEEE_TILES)

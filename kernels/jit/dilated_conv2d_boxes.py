"""The convolution of dilated_conv2d with tensor descriptors, which chips since sm_90 have.

A program has the results of a tile of rows by columns. What a tap reads of it is one box of the
map, loaded by the chip's copy unit, which makes zeros of what is beside the map: no thread has
addresses, masks or copies. A run of pixels, as pointers take it, is no box where it goes on in the
next row. From L2 comes as much either way, BLOCK_M * BLOCK_K elements a tap.

No program goes on to another tile: Triton puts the first loads of a tile behind the store of the
one before, flattened loops or not, and keeps apart what they share here, so that 128 by 256 results
would take 245,816 of the 232,448 bytes of shared memory that sm_90 lends a program.
"""

from typing import Any

import triton
import triton.language as tl

from .dilated_conv2d import TILES, _dot, _tuned


def _set_boxes(arguments: dict[str, Any]) -> None:
    """Gives the descriptors of a launch the boxes of a configuration."""
    tile = [1, arguments["BLOCK_M"] // arguments["TILE_W"], arguments["TILE_W"]]
    block_k, block_n = arguments["BLOCK_K"], arguments["BLOCK_N"]
    arguments["d_x"].block_shape = [*tile, block_k]
    filters = [block_k, 1, block_n] if arguments["TRANSPOSED"] else [block_n, 1, block_k]
    arguments["d_weight"].block_shape = filters
    for name in ("d_residual", "d_out"):
        arguments[name].block_shape = [*tile, block_n]


@triton.jit(do_not_specialize=["size_class"])
def _conv_box_kernel(
    d_x,
    d_weight,
    p_bias,
    d_residual,
    d_out,
    channels,
    out_channels,
    height,
    width,
    dilation,
    size_class,
    TRANSPOSED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    RELU: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """out [N, H, W, O]: x [N, H, W, C] convolved with weight [O, 9, C], or [C, 9, O] if TRANSPOSED;
    the rest as of ``_conv_kernel``. A tile has TILE_W columns, BLOCK_M pixels."""
    TILE_H: tl.constexpr = BLOCK_M // TILE_W
    # Output channels innermost: programs that run together read the same pixels.
    i_program = tl.program_id(0)
    out_blocks = tl.cdiv(out_channels, BLOCK_N)
    first_n = i_program % out_blocks * BLOCK_N
    i_tile = i_program // out_blocks
    col_tiles = tl.cdiv(width, TILE_W)
    first_col = i_tile % col_tiles * TILE_W
    i_tile //= col_tiles
    row_tiles = tl.cdiv(height, TILE_H)
    first_row = i_tile % row_tiles * TILE_H
    image = i_tile // row_tiles

    b_out = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    if HAS_RESIDUAL:
        b_residual = d_residual.load([image, first_row, first_col, first_n])
        b_out += b_residual.to(tl.float32).reshape(BLOCK_M, BLOCK_N)
    if HAS_BIAS:
        o_n = first_n + tl.arange(0, BLOCK_N)
        b_out += tl.load(p_bias + o_n, mask=o_n < out_channels, other=0.0).to(tl.float32)[None, :]
    # Taps innermost: they read nearly the same pixels.
    for i in tl.range(0, 9 * tl.cdiv(channels, BLOCK_K)):
        tap = i % 9
        first_k = i // 9 * BLOCK_K
        tap_row = first_row + (tap // 3 - 1) * dilation
        tap_col = first_col + (tap % 3 - 1) * dilation
        b_x = d_x.load([image, tap_row, tap_col, first_k]).reshape(BLOCK_M, BLOCK_K)
        if TRANSPOSED:
            b_weight = d_weight.load([first_k, tap, first_n]).reshape(BLOCK_K, BLOCK_N)
        else:
            b_weight = d_weight.load([first_n, tap, first_k]).reshape(BLOCK_N, BLOCK_K).T
        b_out = _dot(b_x, b_weight, b_out, PRECISION)

    if RELU:
        # NaN stays, as in torch.
        b_out = tl.where(b_out < 0.0, 0.0, b_out)
    d_out.store(
        [image, first_row, first_col, first_n],
        b_out.to(d_out.dtype).reshape(1, TILE_H, TILE_W, BLOCK_N),
    )


conv_box_kernel = _tuned(_conv_box_kernel, TILES, _set_boxes)

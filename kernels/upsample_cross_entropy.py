"""upsample_cross_entropy in Triton: what the op calls; its kernels are in jit/."""

import torch
import triton
from torch import Tensor

from .jit.common.mean_loss import mean_loss_kernel
from .jit.upsample_cross_entropy import loss_bwd_kernel, loss_fwd_kernel
from .launch import ENOUGH_PROGRAMS, empty_map, launches_on_tensor_device, wrap_triton
from .upsample_tiles import plan, upsampling

_WRONG_LABEL = "upsample_cross_entropy: target: a label is neither a class nor ignore_index"

# Classes of a backward program, for which it loads targets and lse once; its columns of logits, and
# columns of the image that it takes at a time, both the fewest that tl.dot takes. 32 times 16
# elements are 4 of each of 128 threads; twice as many would take all of their registers, because
# products are unrolled.
_BACKWARD_CLASSES = 32
_BACKWARD_COLS = 16
_BACKWARD_WIDTH = 16
# Columns of logits of a program at least, if programs are narrowed to become more: of the image's
# columns that it computes, those of one in eight of logits are a neighbour's too.
_FEWEST_COLS = 7
# Rows of logits of a program. A program computes the image's rows before its first row of logits
# too, so more rows are better, unless programs become too few for a large GPU: 132 multiprocessors,
# four programs on each, as many as its registers hold.
_MOST_ROWS = 8
_ENOUGH_PROGRAMS = 132 * 4
# Programs whose sums are added at a time: three float64 numbers of two for each of 128 threads.
_ADDED_PROGRAMS = 256


def _float_weight(weight: Tensor | None, instead: Tensor) -> Tensor:
    return instead if weight is None else weight.to(torch.float32).contiguous()


def _tile_columns(rounds: int, positions: int, sources: int) -> int:
    """The most columns of logits of a tile whose columns of the image, with those that reach to the
    neighbours at both ends, fill ``rounds``. ``positions`` / ``sources`` are from one to the
    next."""
    columns = rounds * _BACKWARD_WIDTH * sources // positions - 1
    return int(min(max(columns, 1), _BACKWARD_COLS))


@launches_on_tensor_device
def upsample_cross_entropy_forward(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    align_corners: bool,
    label_smoothing: float,
    label_dtype: torch.dtype,
    return_labels: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loss, lse ``[N, H, W]``, the sum of weights by which the loss is divided, and the labels
    ``[N, H, W]`` that the logits predict, ``[0]`` unless asked for."""
    lse = logits.new_empty(target.shape, dtype=torch.float32)
    labels = logits.new_empty(target.shape if return_labels else (0,), dtype=label_dtype)
    p = plan(logits, *target.shape[1:], align_corners)
    # Losses, weights and wrong labels of every program.
    programs = p.grid()[0]
    sums = logits.new_empty((programs, 3), dtype=torch.float64)
    if programs > 0:
        wrap_triton(loss_fwd_kernel)[(programs,)](
            p.logits,
            target.to(torch.int64).contiguous(),
            _float_weight(weight, p.logits),
            lse,
            labels,
            sums,
            *p.sizes,
            ignore_index,
            LABEL_SMOOTHING=label_smoothing,
            WEIGHTED=weight is not None,
            WITH_LABELS=return_labels,
            **p.constants,
        )
    loss, weight_sum = (logits.new_empty((), dtype=torch.float32) for _ in range(2))
    all_right = logits.new_empty((), dtype=torch.int32)
    wrap_triton(mean_loss_kernel)[(1,)](
        sums, loss, weight_sum, all_right, programs, BLOCK_R=_ADDED_PROGRAMS
    )
    # Waits for nothing: a wrong label stops the device's later work, as in torch's own loss.
    torch._assert_async(all_right, _WRONG_LABEL)
    return loss, lse, weight_sum, labels


@launches_on_tensor_device
def upsample_cross_entropy_backward(
    scale: Tensor,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    lse: Tensor,
    ignore_index: int,
    align_corners: bool,
    label_smoothing: float,
) -> Tensor:
    """``scale`` times the gradient of the sum of losses, in memory as logits are."""
    height, width = target.shape[1:]
    p = plan(logits, height, width, align_corners)
    batch, classes, rows, cols = logits.shape
    grad_logits = empty_map(logits, (batch, classes, rows, cols), p.channels_last)
    if lse.numel() == 0:
        return grad_logits.zero_()

    positions, sources = upsampling(width, cols, align_corners)
    rounds = max((_BACKWARD_COLS + 1) * positions // max(sources, 1) // _BACKWARD_WIDTH, 1)
    tile_cols = _tile_columns(rounds, positions, sources)
    class_blocks = triton.cdiv(classes, _BACKWARD_CLASSES)
    # Narrower where even single rows would leave a large GPU idle. Decided for one image, which has
    # the same bits in any batch then: sums of columns are added by rounds.
    while rounds > 1 and class_blocks * triton.cdiv(cols, tile_cols) * rows < ENOUGH_PROGRAMS:
        rounds -= 1
        narrower = _tile_columns(rounds, positions, sources)
        if narrower < _FEWEST_COLS:
            break
        tile_cols = narrower
    tiles = batch * class_blocks * triton.cdiv(cols, tile_cols)
    tile_rows = _MOST_ROWS
    while tile_rows > 1 and tiles * triton.cdiv(rows, tile_rows) < _ENOUGH_PROGRAMS:
        tile_rows //= 2
    constants = {k: v for k, v in p.constants.items() if k not in ("BLOCK_K", "BLOCK_R", "BLOCK_W")}
    wrap_triton(loss_bwd_kernel)[(tiles * triton.cdiv(rows, tile_rows),)](
        scale.to(torch.float32),
        p.logits,
        target.to(torch.int64).contiguous(),
        _float_weight(weight, p.logits),
        lse,
        grad_logits,
        *p.sizes,
        ignore_index,
        LABEL_SMOOTHING=label_smoothing,
        WEIGHTED=weight is not None,
        TILE_ROWS=tile_rows,
        TILE_COLS=tile_cols,
        BLOCK_K=_BACKWARD_CLASSES,
        BLOCK_COLS=_BACKWARD_COLS,
        BLOCK_W=_BACKWARD_WIDTH,
        **constants,
    )
    return grad_logits

"""This project's operators in standard ones, for programs of ``torch.export``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pspfast import backends
from pspfast.deployment import algebra
from pspfast.ops.dilated_conv2d import dilated_conv2d_reference
from pspfast.ops.pyramid_concat import pyramid_concat_reference
from pspfast.ops.pyramid_mix import mix_by_matmul
from pspfast.ops.upsample_argmax import label_dtype_of


def decompositions() -> dict[Any, Callable[..., Any]]:
    """What to give ``ExportedProgram.run_decompositions``, with or without torch's own table.

    A program that was traced with the kernels then has standard operators only: it runs, and
    exports to ONNX, where pspfast is not installed. The heads keep their algebra. The operators are
    those of evaluation; gradients and losses stay.

    Examples:
        >>> import pspfast
        >>> model, images = pspfast.PSPNet(18, head_channels=64).eval(), torch.randn(1, 3, 65, 65)
        >>> program = torch.export.export(model, (images,))
        >>> program = program.run_decompositions(decompositions())
        >>> any("pspfast" in str(node.target) for node in program.graph.nodes)
        False
    """
    if "cpu" in backends.MISSING:
        return {}  # there are no operators, so that programs have standard ones already
    ops = torch.ops.pspfast
    return {
        ops.pyramid_pool.default: algebra.pyramid_pool,
        ops.pyramid_concat.default: pyramid_concat_reference,
        ops.pyramid_mix.default: mix_by_matmul,
        ops.pyramid_upsample_add.default: algebra.pyramid_upsample_add,
        ops.dilated_conv2d.default: dilated_conv2d_reference,
        ops.upsample_concat_conv2d.default: algebra.upsample_concat_conv2d,
        ops.upsample_argmax.default: _upsample_argmax,
        ops.upsample_softmax.default: _upsample_softmax,
    }


def _upsample_argmax(
    logits: Tensor, height: int, width: int, align_corners: bool, dtype: torch.dtype | None = None
) -> Tensor:
    labels = algebra.upsample(logits, (height, width), align_corners).argmax(1)
    return labels.to(label_dtype_of(logits.shape[1]) if dtype is None else dtype)


def _upsample_softmax(
    logits: Tensor, height: int, width: int, align_corners: bool, flip: bool, weight: float
) -> Tensor:
    size: Sequence[int] = (height, width)
    wide = logits if logits.dtype == torch.float64 else logits.float()
    probabilities = algebra.upsample(wide, size, align_corners).softmax(1)
    return (probabilities.flip(3) if flip else probabilities) * weight

"""dilated_conv2d and its gradients on a GPU, each by the fastest of Triton's kernels and cuDNN."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pspfast.ops.common.checks import format_of, is_channels_last
from pspfast.ops.common.fastest import fastest, size_class

# Timing takes images of so many pixels, or one: 64 programs of 128 pixels for each 128 filters.
_TIMED_PIXELS = 64 * 128
_MAPS = ("x", "grad", "residual")


def fastest_conv2d(
    x: Tensor,
    op: str,
    arguments: Mapping[str, Any],
    candidates: Mapping[str, Callable[..., Tensor]],
    elements: Callable[[int], int],
) -> Tensor:
    """What the fastest candidate makes of the arguments, in their order; the first is the rule,
    see :func:`fastest`.

    Args:
        x: the first map.
        op: its name.
        arguments: by name; those of ``_MAPS`` are maps ``[N, …, H, W]``, and timed in part.
        candidates: by name.
        elements: of the result for so many images.
    """
    batch, _, height, width = x.shape
    if x.numel() == 0:
        return next(iter(candidates.values()))(*arguments.values())
    timed = max(min(batch, _TIMED_PIXELS // (height * width)), 1)

    def fact(name: str, argument: Any) -> object:
        if not isinstance(argument, Tensor):
            return argument
        sizes = argument.shape[1:2] if name in _MAPS else argument.shape
        return is_channels_last(argument), argument.dtype, *sizes

    parts = [
        a[:timed] if name in _MAPS and isinstance(a, Tensor) else a for name, a in arguments.items()
    ]
    runs = {name: partial(candidate, *parts) for name, candidate in candidates.items()}
    facts = [fact(*item) for item in arguments.items()]
    key = (op, size_class(batch * height * width), *facts, *candidates)
    # The result, and as much that an implementation works in.
    scratch = 2 * x.element_size() * elements(timed)
    return candidates[fastest(key, runs, scratch)](*arguments.values())


def library_grad_input(grad: Tensor, weight: Tensor, dilation: int) -> Tensor:
    """cuDNN's gradient ``[N, C, H, W]`` of x for that of the result."""
    batch, _, height, width = grad.shape
    x = grad.new_empty(1).expand(batch, weight.shape[1], height, width)
    # It chooses the memory format by x and weight, of which x has none here.
    weight = weight.contiguous(memory_format=format_of(grad, weight))
    return _library_gradients(grad, x, weight, dilation, [True, False, False])[0]


def library_grad_weight(grad: Tensor, x: Tensor, dilation: int) -> Tensor:
    """cuDNN's gradient ``[O, C, 3, 3]`` of the weight for that of the result."""
    weight = grad.new_empty(1).expand(grad.shape[1], x.shape[1], 3, 3)
    return _library_gradients(grad, x, weight, dilation, [False, True, False])[1]


def _library_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, dilation: int, of: list[bool]
) -> tuple[Tensor, ...]:
    return torch.ops.aten.convolution_backward(
        grad, x, weight, None, [1, 1], [dilation] * 2, [dilation] * 2, False, [0, 0], 1, of
    )


def define_fastest_ops(reference: Callable[..., Tensor]) -> None:
    """Defines ``pspfast::dilated_conv2d_fastest`` and both gradients, opaque to compilers, so that
    the choice is made when they run. ``reference`` is the op in plain PyTorch."""
    from pspfast.kernels import dilated_conv2d as kernels
    from pspfast.kernels.launch import launches_on_tensor_device

    run = launches_on_tensor_device(fastest_conv2d)

    def kernels_of(
        launcher: Callable[..., Tensor], x: Tensor, out_channels: int
    ) -> dict[str, Callable[..., Tensor]]:
        """The rule, and of descriptors and pointers the one that it is not."""
        if not kernels.takes_boxes(x, out_channels):
            return {"triton": launcher}
        by_rule = kernels.boxes_by_rule(x, out_channels)
        return {"triton": launcher, "other": partial(launcher, boxes=not by_rule)}

    @torch.library.custom_op("pspfast::dilated_conv2d_fastest", mutates_args=())
    def _fastest(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        dilation: int,
        residual: Tensor | None,
        relu: bool,
    ) -> Tensor:
        names = ("x", "weight", "bias", "dilation", "residual", "relu")
        arguments = dict(zip(names, (x, weight, bias, dilation, residual, relu), strict=True))
        channels, pixels = weight.shape[0], x.shape[2] * x.shape[3]
        candidates = kernels_of(kernels.dilated_conv2d, x, channels)
        candidates["library"] = reference
        out = run(x, "dilated_conv2d", arguments, candidates, lambda n: n * channels * pixels)
        return out.contiguous(memory_format=format_of(x, weight))

    @torch.library.custom_op("pspfast::dilated_conv2d_grad_input_fastest", mutates_args=())
    def _grad_input_fastest(grad: Tensor, weight: Tensor, dilation: int) -> Tensor:
        arguments = {"grad": grad, "weight": weight, "dilation": dilation}
        channels, pixels = weight.shape[1], grad.shape[2] * grad.shape[3]
        candidates = kernels_of(kernels.dilated_conv2d_grad_input, grad, channels)
        candidates["library"] = library_grad_input
        op = "dilated_conv2d_grad_input"
        grad_x = run(grad, op, arguments, candidates, lambda n: n * channels * pixels)
        return grad_x.contiguous(memory_format=format_of(grad, weight))

    @torch.library.custom_op("pspfast::dilated_conv2d_grad_weight_fastest", mutates_args=())
    def _grad_weight_fastest(grad: Tensor, x: Tensor, dilation: int, channels_last: bool) -> Tensor:
        arguments = {"grad": grad, "x": x, "dilation": dilation}
        size = 9 * grad.shape[1] * x.shape[1]
        triton = kernels.dilated_conv2d_grad_weight
        candidates = {"triton": triton, "library": library_grad_weight}
        op = "dilated_conv2d_grad_weight"
        grad_weight = run(grad, op, arguments, candidates, lambda n: size)
        order = torch.channels_last if channels_last else torch.contiguous_format
        return grad_weight.contiguous(memory_format=order)

"""What the ops' Python sides share: checks for backends without C++ ones, and facts about maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pspfast import backends

# kMaxLevels, kMaxAxisBins and kMaxAxisSize of csrc/geometry.h.
_MAX_LEVELS = 8
_MAX_AXIS_BINS = 64
MAX_AXIS_SIZE = 2**23


def is_channels_last(x: Tensor) -> bool:
    """Whether the map's memory order is channels_last and cannot be read as contiguous."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def format_of(*tensors: Tensor) -> torch.memory_format:
    """channels_last if one of the tensors is, as results of ``F.conv2d`` are, else contiguous."""
    return torch.channels_last if any(map(is_channels_last, tensors)) else torch.contiguous_format


def is_autocast(x: Tensor) -> bool:
    """Whether autocast is on for the device of ``x``; for meta tensors it never is."""
    return x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)


def autocast(*tensors: Tensor | None) -> list[Any]:
    """The tensors as autocast hands them to a convolution: float64 is left alone."""
    device = next(t for t in tensors if t is not None).device.type
    dtype = torch.get_autocast_dtype(device)
    return [t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in tensors]


def check_map(op: str, name: str, x: Tensor) -> None:
    if x.dim() != 4:
        raise ValueError(f"{op}: {name}: expected [N, C, H, W], got shape {list(x.shape)}")
    # Only the kernels for GPUs have no float64.
    is_gpu_double = x.dtype == torch.float64 and x.device.type != "cpu"
    if not x.is_floating_point() or (is_gpu_double and backends.select(op, x) != "reference"):
        raise TypeError(f"{op}: {name}: expected float32, float16 or bfloat16, got {x.dtype}")
    height, width = x.shape[2:]
    if not (1 <= height <= MAX_AXIS_SIZE and 1 <= width <= MAX_AXIS_SIZE):
        raise ValueError(
            f"{op}: {name}: expected H and W of 1 to {MAX_AXIS_SIZE}, got {height} and {width}"
        )


def check_logits(op: str, logits: Tensor) -> None:
    check_map(op, "logits", logits)
    if logits.shape[1] < 1:
        raise ValueError(f"{op}: logits: expected K of at least 1, got 0")


def check_size(op: str, size: Sequence[int]) -> None:
    if len(size) != 2:
        raise ValueError(f"{op}: size: expected (H, W), got {tuple(size)}")
    height, width = size
    if not (1 <= height <= MAX_AXIS_SIZE and 1 <= width <= MAX_AXIS_SIZE):
        raise ValueError(
            f"{op}: size: expected H and W of 1 to {MAX_AXIS_SIZE}, got {height} and {width}"
        )


def check_bins(op: str, bins: Sequence[int]) -> None:
    if not 1 <= len(bins) <= _MAX_LEVELS:
        raise ValueError(f"{op}: bins: expected 1 to {_MAX_LEVELS} levels, got {len(bins)}")
    for b in bins:
        if not 1 <= b <= _MAX_AXIS_BINS:
            raise ValueError(f"{op}: bins: expected each of 1 to {_MAX_AXIS_BINS}, got {b}")
    if sum(bins) > _MAX_AXIS_BINS:
        raise ValueError(f"{op}: bins: expected a sum of at most {_MAX_AXIS_BINS}, got {sum(bins)}")


def check_priors(op: str, priors: Tensor, x: Tensor, bins: Sequence[int]) -> None:
    bin_count = sum(b * b for b in bins)
    if priors.dim() != 3 or priors.shape[0] != x.shape[0] or priors.shape[2] != bin_count:
        raise ValueError(
            f"{op}: priors: expected [N, R, S] with N = {x.shape[0]} and S = {bin_count}, "
            f"got shape {list(priors.shape)}"
        )
    check_same(op, "priors", priors, "x", x)


def check_same(op: str, name: str, tensor: Tensor, like: str, other: Tensor) -> None:
    if tensor.dtype != other.dtype:
        raise TypeError(f"{op}: {name}: expected {other.dtype} as {like}, got {tensor.dtype}")
    if tensor.device != other.device:
        raise ValueError(
            f"{op}: {name}: expected device {other.device} as {like}, got {tensor.device}"
        )


def check_floating(op: str, name: str, tensor: Tensor) -> None:
    if not tensor.is_floating_point():
        raise TypeError(f"{op}: {name}: expected floating point, got {tensor.dtype}")


def check_bias(op: str, bias: Tensor, weight: Tensor, x: Tensor) -> None:
    if bias.shape != weight.shape[:1]:
        raise ValueError(
            f"{op}: bias: expected [O] with O = {weight.shape[0]}, got shape {list(bias.shape)}"
        )
    check_same(op, "bias", bias, "x", x)


def check_residual(op: str, residual: Tensor, shape: Sequence[int], x: Tensor) -> None:
    if list(residual.shape) != list(shape):
        raise ValueError(
            f"{op}: residual: expected shape {list(shape)}, got {list(residual.shape)}"
        )
    check_same(op, "residual", residual, "x", x)


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """What sums of numbers of this dtype are kept in."""
    return torch.float64 if dtype == torch.float64 else torch.float32

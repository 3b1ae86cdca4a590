"""3×3 convolutions with half of the multiplications, in standard operators.

Winograd's F(4, 3) along the width: four outputs of three taps from six products instead of twelve.
Runtimes on CPUs compute every multiplication of a convolution, at nearly the rate of a matrix
product; the transforms into six maps of a quarter of the width and back are products with small
matrices. Only one axis is transformed: both would be faster by another fifth, with rounding errors
of ten times as much, and weights of four times as much.

The algorithm is Lavin and Gray's, "Fast Algorithms for Convolutional Neural Networks", 2016.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Fewer channels than these, in or out, take as long directly, and 64 twice as long so.
MIN_CHANNELS = 256

# Of the interpolation points 0, 1, -1, 2, -2 and infinity.
_INTO_TILES = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
_OF_TAPS = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
_FROM_TILES = (
    (1, 0, 0, 0),
    (1, 1, 1, 1),
    (1, -1, 1, -1),
    (1, 2, 4, 8),
    (1, -2, 4, -8),
    (0, 0, 0, 1),
)


def fits(
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> bool:
    """Whether :func:`conv3x3` is the faster form of a convolution ``[O, C, k, l]``."""
    return (
        weight.shape[2:] == (3, 3)
        and min(weight.shape[:2]) >= MIN_CHANNELS
        # Rounding errors of half precision would be multiplied.
        and weight.dtype in (torch.float32, torch.float64)
        and groups == 1
        and set(stride) == {1}
        and len({*padding, *dilation}) == 1
    )


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None = None, dilation: int = 1) -> Tensor:
    """``F.conv2d(x, weight, bias, padding=dilation, dilation=dilation)``, of any size.

    Args:
        x: ``[N, C, H, W]``.
        weight: ``[O, C, 3, 3]``.
        bias: ``[O]``.
        dilation: of both axes.

    Returns:
        ``[N, O, H, W]``, with errors of a few roundings more.
    """
    into, back = _transforms(x.shape[3], dilation, x)
    taps = (weight @ weight.new_tensor(_OF_TAPS).t()).split(1, dim=3)
    shares = [
        F.conv2d(x @ to_tiles, column, padding=(dilation, 0), dilation=(dilation, 1)) @ to_map
        for to_tiles, column, to_map in zip(into, taps, back, strict=True)
    ]
    out = sum(shares[1:], shares[0])
    return out if bias is None else out + bias[:, None, None]


def replace_convolutions(network: nn.Module) -> None:
    """Gives a network's layers that gain from it the form of :func:`conv3x3`, in place."""
    for parent in [*network.modules()]:
        for name, conv in parent.named_children():
            if isinstance(conv, nn.Conv2d):
                assert not isinstance(conv.padding, str)
                if fits(conv.weight, conv.stride, conv.padding, conv.dilation, conv.groups):
                    setattr(parent, name, _Conv3x3(conv))


def decompositions() -> dict[Any, Callable[..., Any]]:
    """The same for ``ExportedProgram.run_decompositions``."""
    return {torch.ops.aten.conv2d.default: _conv2d}


def _conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> Tensor:
    if x.dim() != 4 or not fits(weight, stride, padding, dilation, groups):
        return NotImplemented
    return conv3x3(x, weight, bias, dilation[0])


class _Conv3x3(nn.Module):
    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias, self.dilation = conv.weight, conv.bias, conv.dilation[0]

    def forward(self, x: Tensor) -> Tensor:
        return conv3x3(x, self.weight, self.bias, self.dilation)


def _transforms(length: int, dilation: int, like: Tensor) -> tuple[Sequence[Tensor], ...]:
    """Six matrices ``[length, tiles]`` and six ``[tiles, length]``.

    Tile t d + r has the outputs 4 t d + r, + d, + 2 d and + 3 d, where d is the dilation: outputs
    that share their inputs are d apart. The last tiles may end beyond the map, where inputs are
    zero and outputs are left out.
    """
    tiles = (length + 4 * dilation - 1) // (4 * dilation) * dilation
    tile = torch.arange(tiles, device=like.device)
    first = torch.div(tile, dilation, rounding_mode="floor") * (3 * dilation) + tile
    positions = torch.arange(length, device=like.device)
    offset = positions[:, None] - first[None]
    inputs = (torch.arange(6, device=like.device) - 1) * dilation
    outputs = torch.arange(4, device=like.device) * dilation
    is_input = (offset[None] == inputs[:, None, None]).to(like.dtype)
    is_output = (offset.t()[None] == outputs[:, None, None]).to(like.dtype)
    into = (like.new_tensor(_INTO_TILES) @ is_input.flatten(1)).unflatten(1, (length, tiles))
    back = (like.new_tensor(_FROM_TILES) @ is_output.flatten(1)).unflatten(1, (tiles, length))
    return into.unbind(0), back.unbind(0)

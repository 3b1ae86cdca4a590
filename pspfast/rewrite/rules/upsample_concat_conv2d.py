"""A convolution over a concatenation or sum with upsampled maps runs without both.

    conv(cat[m_0, up(m_1), …], W) = Σ_i interpolate-and-accumulate(W_i[:, :, ky, kx] m_i)

with W_i the weight's part for the channels of m_i: :func:`pspfast.ops.upsample_concat_conv2d`. A
map upsampled from h w to H W pixels costs h w / (H W) of its share of the multiplications.

    conv(up(m_0) + up(m_1) + …, W) = conv(cat[up(m_0), up(m_1), …], [W W …])

where nothing else reads the sum. Each map has a share as large as the sum's: nothing is saved with
one of the full size among them.

A pyramid-pooling head is one of these, and no case of its own: over 2048 channels of 64×64 and four
levels of 512 channels :func:`pspfast.ops.pyramid_conv2d` needs 38.83 G multiplications forwards and
116.43 G with backward, this operator 38.83 G and 116.49 G, the concatenation 77.3 G and 231.9 G.

Done for kernels of 1×1 and 3×3 with stride 1 and without groups, where at least 15 % of the
multiplications go. Maps in one concatenation that shrink, as the largest in smp's Segformer, or
are interpolated in another way than most are interpolated as before, and then are maps of the full
size.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import fx

from pspfast.ops import upsample_concat_conv2d
from pspfast.rewrite.facts import aten, hint, pixels, value
from pspfast.rewrite.graph import Graph, Unfit
from pspfast.rewrite.rules.matching import (
    Upsampling,
    concatenated,
    convolution,
    summed,
    upsampled_size,
    upsampling,
)

NAME = "upsample_concat_conv2d"
TARGETS = (aten.conv2d.default,)

# What is left of the multiplications, at most: interpolation costs time too.
_MOST_LEFT = 0.85


def rewrite(graph: Graph, node: fx.Node) -> None:
    """Rule: a convolution over upsampled maps, concatenated with others or alone."""
    conv = convolution(node)
    if conv is None:
        return
    total = summed(conv.x)
    members, gone = concatenated(conv.x) or total or ([conv.x], [])
    found = [_growing(member) for member in members]
    ways = Counter((f.mode, f.align_corners) for f in found if f)
    if not ways:
        return
    (mode, align_corners), _ = ways.most_common(1)[0]
    taken = [f if f and (f.mode, f.align_corners) == (mode, align_corners) else None for f in found]
    maps = [f.source if f else m for f, m in zip(taken, members, strict=True)]
    left = _multiplications(maps) / _multiplications([conv.x])
    if left > _MOST_LEFT:
        raise Unfit(f"{left:.0%} of the multiplications would be left")
    if total and len(conv.x.users) > 1:
        raise Unfit("the sum is used elsewhere too")
    full = next((m for f, m in zip(taken, members, strict=True) if f is None), None)
    size: list[Any]
    if full is not None:
        size = graph.size_of(node, full)
    else:
        size = upsampled_size(next(f for f in taken if f))
    weight = conv.weight
    if total:
        weight = graph.insert_of_weight(node, aten.cat.default, [weight] * len(maps), 1)
    graph.replace(
        NAME,
        [*gone, *(f.node for f in taken if f), node],
        upsample_concat_conv2d,
        maps,
        weight,
        size,
        mode=mode,
        align_corners=align_corners,
        bias=conv.bias,
    )


def _growing(node: fx.Node) -> Upsampling | None:
    found = upsampling(node)
    return found if found and pixels(found.source) < pixels(node) else None


def _multiplications(maps: list[fx.Node]) -> int:
    """For each result's channel and tap."""
    return sum(hint(value(m).shape[1]) * pixels(m) for m in maps)

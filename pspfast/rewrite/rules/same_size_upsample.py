"""An interpolation to the size that is there already gives its input.

Source position i of H pixels interpolated to H is i, whatever ``align_corners`` is, so each result
is one pixel with weight 1. Post-processing of labels does so after a model that upsampled itself.

The result is another tensor than the input; where either is written to, it stays.
"""

from __future__ import annotations

from torch import fx

from pspfast.rewrite.facts import value
from pspfast.rewrite.graph import Graph
from pspfast.rewrite.rules.matching import UPSAMPLINGS, same_size, upsampling

NAME = "same_size_upsample"
TARGETS = UPSAMPLINGS


def rewrite(graph: Graph, node: fx.Node) -> None:
    """Rule: an interpolation to its own size goes."""
    found = upsampling(node)
    if found and same_size(value(node), value(found.source)):
        graph.forward(NAME, node, found.source)

"""Bins and cells of a pyramid, and what the concatenation of its levels contains."""

from __future__ import annotations

import torch
from matplotlib.figure import Figure

from pspfast.ops import pyramid_concat, pyramid_pool
from tools.pictures.drawing import EAGER, LINE, OURS, scene_map, show

BINS = (1, 2, 3, 6)
# 6 divides neither, so that neighbouring bins overlap by a row or a column.
HEIGHT, WIDTH = 23, 31


def bin_edges(size: int) -> list[int]:
    """Where a bin of some level begins or ends along an axis, as adaptive_avg_pool2d cuts it."""
    edges = set()
    for b in BINS:
        edges |= {u * size // b for u in range(b)} | {-(-(u + 1) * size // b) for u in range(b)}
    return sorted(edges)


def draw_cells() -> Figure:
    x = scene_map(HEIGHT, WIDTH)
    levels = pyramid_pool(x, BINS).split([b * b for b in BINS], 2)
    figure = Figure(figsize=(9, 2.6), layout="constrained")
    first, *others = figure.subplots(1, 5, width_ratios=[1.6, 1, 1, 1, 1])
    rows, columns = bin_edges(HEIGHT), bin_edges(WIDTH)
    cells = (len(rows) - 1) * (len(columns) - 1)
    show(first, x[0, 0], f"map {HEIGHT}×{WIDTH}, cut into {cells} cells", (0, 1))
    for row in rows:
        first.axhline(row - 0.5, color=LINE, linewidth=0.8)
    for column in columns:
        first.axvline(column - 0.5, color=LINE, linewidth=0.8)
    for axis, b, level in zip(others, BINS, levels, strict=True):
        show(axis, level.reshape(b, b), f"b = {b}: {b * b} bins", (0, 1))
        axis.set_aspect(HEIGHT / WIDTH)
        for u, v in ((u, v) for u in range(b) for v in range(b)):
            mean = float(level[0, 0, u * b + v])
            colour = "white" if mean < 0.5 else "black"
            place = {"ha": "center", "va": "center"}
            axis.text(v, u, f"{mean:.2f}", color=colour, fontsize=6, **place)
    return figure


def draw_concatenation() -> Figure:
    x = scene_map(HEIGHT, WIDTH)
    priors = pyramid_pool(x, BINS)
    channels = pyramid_concat(x, priors, BINS)[0]
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    above, middle, below = figure.subfigures(3, 1, height_ratios=[1, 1, 0.9])
    above.suptitle("the concatenation: five parts of the map's size", fontsize=10)
    for axis, channel, b in zip(above.subplots(1, 5), channels, (0, *BINS), strict=True):
        show(axis, channel, f"level b = {b}, upsampled" if b else "map", (0, 1))
    middle.suptitle("what is kept instead: the map, and the bins", fontsize=10)
    levels = [x[0, 0], *(p.reshape(b, b) for p, b in zip(_split(priors), BINS, strict=True))]
    for axis, level, b in zip(middle.subplots(1, 5), levels, (0, *BINS), strict=True):
        show(axis, level, f"level b = {b}" if b else "map", (0, 1))
        axis.set_xlim(-0.5, WIDTH - 0.5)
        axis.set_ylim(HEIGHT - 0.5, -0.5)
    # PSPNet50 at 473×473: 60×60 positions, 2048 channels and four levels of 512, a head of 512.
    taps, positions, bins = 9 * 512, 60 * 60, sum(b * b for b in BINS)
    whole = taps * 4096 * positions / 1e9
    parts = (taps * 2048 * positions / 1e9, taps * 512 * bins / 1e9)
    bars = below.subplots()
    bars.barh(["concatenated", "apart"], [whole, parts[0]], color=[EAGER, OURS])
    bars.barh(["apart"], [parts[1]], left=[parts[0]], color=LINE)
    bars.text(whole, 0, f" {whole:.1f}", va="center")
    apart = f" {parts[0]:.1f} for the map + {parts[1]:.2f} for the bins"
    bars.text(sum(parts), 1, apart, va="center")
    bars.set_xlim(0, 1.1 * whole)
    title = "10⁹ multiplications of the head's 3×3 convolution, PSPNet50 at 473×473"
    bars.set_title(title, fontsize=9)
    return figure


def _split(priors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return priors[0, 0].split([b * b for b in BINS])

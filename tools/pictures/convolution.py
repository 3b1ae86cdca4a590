"""The taps of a convolution mixed before upsampling; the phases of a dilated one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from pspfast.ops import dilated_conv2d, pyramid_conv2d
from tools.pictures.drawing import LINE, scene_map, show

B, SIZE = 3, 18
KERNEL = torch.tensor([[1.0, 2.0, 0.0], [2.0, 4.0, -2.0], [0.0, -2.0, -1.0]])
PHASE_COLOURS = ("#1565c0", "#ef6c00", "#2e7d32", "#6a1b9a")


def draw_taps() -> Figure:
    p = scene_map(B, B)
    up = F.interpolate(p, (SIZE, SIZE), mode="bilinear", align_corners=True)
    expected = F.conv2d(up, KERNEL[None, None], padding=1)
    # The map has no part in it: its weight is zero.
    weight = torch.stack([torch.zeros(3, 3), KERNEL])[None]
    got = pyramid_conv2d(torch.zeros_like(up), p.flatten(2), weight, (B,))
    figure = Figure(figsize=(9, 4.4), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[1, 1.35])
    above.suptitle("upsample, then convolve", fontsize=10)
    show_p, show_up, show_out = above.subplots(1, 3)
    show(show_p, p[0, 0], f"level p: {B}×{B} bins", (0, 1))
    show(show_up, up[0, 0], f"upsampled to {SIZE}×{SIZE}", (0, 1))
    show(show_out, expected[0, 0], "convolved")
    difference = float((got - expected).norm() / expected.norm())
    assert difference < 1e-5, difference
    below.suptitle("mix at the bins, then upsample each tap, shifted, and add", fontsize=10)
    left, right = below.subfigures(1, 2)
    mixed = KERNEL.flatten()[:, None, None] * p[0, 0]
    limits = float(mixed.min()), float(mixed.max())
    for axis, part, tap in zip(left.subplots(3, 3).flat, mixed, KERNEL.flatten(), strict=True):
        show(axis, part, f"{tap:g} · p", limits)
    show(right.subplots(), got[0, 0], "their sum: the same map")
    return figure


def draw_phases() -> Figure:
    d, size = 2, 16
    x = scene_map(size, size)
    # Convolving each phase by itself gives the dilated convolution.
    got = torch.empty_like(x)
    for i, j in ((i, j) for i in range(d) for j in range(d)):
        got[..., i::d, j::d] = F.conv2d(x[..., i::d, j::d], KERNEL[None, None], padding=1)
    expected = dilated_conv2d(x, KERNEL[None, None], dilation=d)
    assert torch.allclose(got, expected, atol=1e-4)

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subfigures(1, 2)
    whole = left.subplots()
    show(whole, x[0, 0], f"{size}×{size}, d = {d}: a kernel's nine taps lie in one phase", (0, 1))
    for row, column in ((r, c) for r in range(size) for c in range(size)):
        colour = PHASE_COLOURS[row % d * d + column % d]
        whole.plot(column, row, ".", color=colour, markersize=3)
    for row, column in ((r, c) for r in (5, 7, 9) for c in (5, 7, 9)):
        whole.plot(column, row, "s", color=LINE, markersize=7, markerfacecolor="none")
    for index, axis in enumerate(right.subplots(d, d).flat):
        i, j = divmod(index, d)
        show(axis, x[0, 0, i::d, j::d], f"phase ({i}, {j})", (0, 1))
        for spine in axis.spines.values():
            spine.set(color=PHASE_COLOURS[index], linewidth=3)
        for row, column in ((r, c) for r in (0, 4) for c in (0, 4)):
            axis.add_patch(Rectangle((column - 0.5, row - 0.5), 4, 4, fill=False, color="white"))
        # What the first tile of 4×4 results reads: 6×6 inputs, some of them padding.
        axis.add_patch(Rectangle((-1.5, -1.5), 6, 6, fill=False, color=LINE, linewidth=1.5))
        axis.set_xlim(-1.7, size / d - 0.3)
        axis.set_ylim(size / d - 0.3, -1.7)
    return figure

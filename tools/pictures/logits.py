"""A loss computed without its logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

from pspfast.ops import upsample_cross_entropy
from tools.pictures.drawing import EAGER, OURS, scene_map, show

SMALL, LARGE = (8, 11), (57, 81)
# A training step of semseg's recipe for ADE20K.
IMAGES, CLASSES, SIDE = 16, 150, 473


def draw_loss() -> Figure:
    brightness = scene_map(*SMALL)
    logits = 12 * torch.cat([0.45 - brightness, torch.zeros_like(brightness), brightness - 0.7], 1)
    truth = F.interpolate(scene_map(*SMALL), LARGE, mode="bilinear", align_corners=True)[:, 0]
    target = (truth > 0.45).long() + (truth > 0.7)
    ours, labels = upsample_cross_entropy(logits, target, return_argmax=True)
    upsampled = F.interpolate(logits, LARGE, mode="bilinear", align_corners=True)
    eager = F.cross_entropy(upsampled, target)
    assert torch.allclose(ours, eager, atol=1e-5)

    pixels = IMAGES * SIDE * SIDE
    kept = {"logits of every pixel": 4 * CLASSES * pixels, "one number a pixel": 4 * pixels}
    figure = Figure(figsize=(9, 3.9), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[1.5, 1])
    first, second, third = above.subplots(1, 3)
    show(first, logits[0, 2], f"logits of one class, {SMALL[0]}×{SMALL[1]}")
    show(second, labels[0].long(), f"labels of the same pass, {LARGE[0]}×{LARGE[1]}")
    losses = F.cross_entropy(upsampled, target, reduction="none")
    show(third, losses[0], f"loss of each pixel; mean {float(ours):.4f} both ways")
    bars = below.subplots()
    sizes = [size / 1e6 for size in kept.values()]
    bars.barh([*kept], sizes, color=[EAGER, OURS])
    for row, size in enumerate(sizes):
        bars.text(size, row, f" {size:.0f} MB", va="center")
    bars.set_xlim(0, 1.15 * max(sizes))
    title = f"in float32, {IMAGES} images of {SIDE}×{SIDE}, {CLASSES} classes"
    bars.set_title(title, fontsize=9)
    return figure

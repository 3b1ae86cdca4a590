"""What the pictures share: a map to look at, and files that are the same on every run."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from pspfast.data import SceneDataset

OURS, EAGER, LINE = "#00796b", "#9e9e9e", "#d32f2f"


def scene_map(height: int, width: int) -> Tensor:
    """Brightness of a drawn scene, 0 to 1, ``[1, 1, height, width]``."""
    image, _ = SceneDataset(1, (184, 248), seed=1).render(0)
    brightness = torch.from_numpy(image).float().mean(2)[None, None]
    pooled = torch.nn.functional.adaptive_avg_pool2d(brightness, (height, width))
    return (pooled - pooled.min()) / (pooled.max() - pooled.min())


def show(axis: Axes, values: Tensor, title: str, limits: tuple[float, float] | None = None) -> None:
    low, high = limits or (float(values.min()), float(values.max()))
    axis.imshow(values.detach(), cmap="viridis", vmin=low, vmax=high)
    axis.set_title(title, fontsize=9)
    axis.set_xticks([])
    axis.set_yticks([])


def save(figure: Figure, path: Path) -> None:
    # Neither random ids nor a date, and text that stays text.
    with matplotlib.rc_context({"svg.hashsalt": "pspfast", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None}, facecolor="white")

"""Memory over a training step, on tensors without memory."""

from __future__ import annotations

from matplotlib.figure import Figure

from tools.footprint.pspnet import count
from tools.pictures.drawing import EAGER, OURS

TASK = "training step, 16 images"


def draw_memory() -> Figure:
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    axis = figure.subplots()
    for side, colour in (("eager", EAGER), ("ours", OURS)):
        gib = [size / 2**30 for size in count(TASK, side).live_bytes_over_time]
        progress = [100 * i / len(gib) for i in range(len(gib))]
        axis.plot(progress, gib, color=colour, label=f"{side}, at most {max(gib):.1f} GiB")
    axis.set(xlabel="operators of the step, %", ylabel="GiB alive", ylim=(0, None), xlim=(0, 100))
    axis.set_title(f"PSPNet50, {TASK} of 473×473, 150 classes, float32", fontsize=9)
    axis.legend()
    return figure

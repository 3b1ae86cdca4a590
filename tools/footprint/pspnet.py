"""PSPNet50, in float32, as semseg's users run it ("eager") and as ours."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks.semseg import SemsegPSPNet
from pspfast import PSPNet, optimize_for_inference
from tools.footprint.imagined_gpu import on_an_imagined_gpu
from tools.operator_costs import Footprint

SIZE, CLASSES = 473, 150
TASKS = {
    "inference, 1 image": ("infer", 1),
    "inference, 16 images": ("infer", 16),
    "training step, 16 images": ("train", 16),
}


def infer(side: str, batch: int) -> Footprint:
    """Images to labels."""
    model: nn.Module = PSPNet(50, classes=CLASSES)
    images = torch.empty(batch, 3, SIZE, SIZE)
    if side == "eager":
        model = SemsegPSPNet(model.state_dict())
        run: Callable[[], Tensor] = lambda: model(images).max(1)[1]  # noqa: E731
    else:
        model = optimize_for_inference(model)
        # Without its inference mode, in which operators made of others are dispatched as they are.
        run = partial(model._predict, images)
    with torch.no_grad(), Footprint(_held(model, images)) as footprint:
        run()
    return footprint


def train(
    side: str, batch: int, prepare: Callable[[nn.Module], nn.Module] = lambda model: model
) -> Footprint:
    """Forward, backward and SGD, and what prepares the network for them."""
    model: nn.Module = PSPNet(50, classes=CLASSES, dropout=0.0)
    if side == "eager":
        model = SemsegPSPNet(model.state_dict()).train()
    images = torch.empty(batch, 3, SIZE, SIZE)
    target = torch.empty(batch, SIZE, SIZE, dtype=torch.long)
    # foreach is the default for GPUs.
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4, foreach=True
    )
    # There are no labels to look at, which it does on the CPU only.
    unchecked = mock.patch("pspfast.models.pspnet.check_target", lambda *_: None)
    with unchecked, Footprint(_held(model, images, target)) as footprint:
        model = prepare(model)
        main_loss, aux_loss = (
            model.losses(images, target) if side == "eager" else model(images, target)[1:]
        )
        (main_loss + 0.4 * aux_loss).backward()
        optimizer.step()
        optimizer.zero_grad()
    return footprint


def _held(model: nn.Module, *tensors: Tensor) -> list[Tensor]:
    return [*model.parameters(), *model.buffers(), *tensors]


def count(task: str, side: str) -> Footprint:
    """The footprint of one of ``TASKS``, ``"ours"`` or ``"eager"``."""
    kind, batch = TASKS[task]
    with on_an_imagined_gpu():
        return {"infer": infer, "train": train}[kind](side, batch)


def ratios(ours: Footprint, eager: Footprint) -> dict[str, float]:
    """Ours over eager's."""
    return {
        "FLOPs": ours.total.flops / eager.total.flops,
        "bytes": ours.total.bytes / eager.total.bytes,
        "peak memory": ours.peak_bytes / eager.peak_bytes,
    }

"""What PSPNet50 costs a GPU, counted without one: ``python -m tools.footprint``.

Both networks run on tensors without memory, under ``FakeTensorMode``, the one as semseg's users run
it, the other on this project's operators for GPUs. The tensors say that they are on the CPU: for
others autograd's engine asks a GPU for its streams.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.semseg import SemsegPSPNet
from pspfast import PSPNet, backends, optimize_for_inference
from tools.operator_costs import Footprint
from tools.report import table, with_section, write_whole
from tools.roofline import CHIPS, least_seconds

SIZE, CLASSES = 473, 150
TASKS = {
    "inference, 1 image": ("infer", 1),
    "inference, 16 images": ("infer", 16),
    "training step, 16 images": ("train", 16),
}
# Operators of the roofline's table; the others are added up.
SHOWN = 12


@contextmanager
def on_an_imagined_gpu() -> Iterator[None]:
    served_by = {"triton": "cpu", "cpu": "nothing", "cuda": "nothing"}
    with FakeTensorMode(allow_non_fake_inputs=True), mock.patch.dict(backends._DEVICES, served_by):
        yield


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
    """Forward, backward and SGD, of a prepared network."""
    model: nn.Module = prepare(PSPNet(50, classes=CLASSES, dropout=0.0))
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


def footprint_table(counted: dict[str, dict[str, Footprint]]) -> str:
    header = ("", "", "TFLOP", "GB moved", "GiB at the peak", "operators")
    rows = []
    for task, sides in counted.items():
        for side, footprint in sides.items():
            total = footprint.total
            rows.append(
                (
                    task if side == "eager" else "",
                    side,
                    f"{total.flops / 1e12:.3f}",
                    f"{total.bytes / 1e9:.1f}",
                    f"{footprint.peak_bytes / 2**30:.2f}",
                    str(total.launches),
                )
            )
        by = ratios(**sides)
        cells = [f"{by[kind]:.3f}" for kind in ("FLOPs", "bytes", "peak memory")]
        rows.append(("", "ours / eager", *cells, ""))
    return table(header, rows)


def roofline_table(counted: dict[str, Footprint]) -> str:
    """Milliseconds of the training step, by operator."""
    columns = [(f"{chip.name} {side}", chip, side) for chip in CHIPS for side in ("eager", "ours")]

    def seconds(names: list[str]) -> list[float]:
        return [
            least_seconds(
                [cost for name in names for cost in counted[side].costs.get(name, [])],
                chip.tf32,
                chip.bandwidth,
            )
            for _, chip, side in columns
        ]

    every = sorted({name for f in counted.values() for name in f.costs})
    shown = sorted(every, key=lambda name: -max(seconds([name])))[:SHOWN]
    groups = {f"`{name}`": [name] for name in shown}
    groups["the others"] = [name for name in every if name not in shown]
    groups["all"] = every
    rows = [
        (title, *(f"{1e3 * s:.2f}" if s else "" for s in seconds(names)))
        for title, names in groups.items()
    ]
    return table(("", *(title for title, _, _ in columns)), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("docs/GPU.md"))
    output = parser.parse_args().output
    counted = {task: {s: count(task, s) for s in ("eager", "ours")} for task in TASKS}
    footprint = footprint_table(counted)
    print(footprint)
    roofline = roofline_table(counted["training step, 16 images"])
    page = with_section(output.read_text(), "footprint", footprint)
    write_whole(output, with_section(page, "roofline", roofline).encode())


if __name__ == "__main__":
    main()

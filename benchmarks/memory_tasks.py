"""Prints megabytes at the peak of ``python memory_tasks.py task ours|eager``; see
test_peak_memory.py. Needs Linux, whose kernel counts the peak and forgets it on request, and
glibc."""

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from pspfast import PSPNet
from pspfast.ops import upsample_cross_entropy


class OrdinaryCrossEntropy(nn.CrossEntropyLoss):
    """The same loss, of a class for which PSPNet does not take upsample_cross_entropy."""


def resident(line: str) -> float:
    status = dict(
        entry.split(":", 1) for entry in Path("/proc/self/status").read_text().splitlines()
    )
    return int(status[line].split()[0]) / 1024


def eager_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    upsampled = F.interpolate(logits, target.shape[1:], mode="bilinear", align_corners=True)
    return F.cross_entropy(upsampled, target, ignore_index=255)


def loss_task(side: str, classes: int, resolution: int, size: int):
    logits = torch.randn(2, classes, resolution, resolution, requires_grad=True)
    target = torch.randint(0, classes, (2, size, size))
    function = upsample_cross_entropy if side == "ours" else eager_loss
    # Threads and libraries are there before the peak is counted.
    function(logits[:, :, :3, :3], target[:, :17, :17]).backward()
    return lambda: function(logits, target).backward()


def training_task(side: str):
    criterion = nn.CrossEntropyLoss if side == "ours" else OrdinaryCrossEntropy
    model = PSPNet(50, classes=150, criterion=criterion(ignore_index=255))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    images, labels = torch.randn(2, 3, 473, 473), torch.randint(0, 150, (2, 473, 473))

    def step() -> None:
        _, main_loss, aux_loss = model(images, labels)
        (main_loss + 0.4 * aux_loss).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def model_task(side: str, name: str) -> Callable[[], None]:
    """A step of another library's model, which compiles and allocates at a first one."""
    # As in conftest.py.
    sys.path.append(str(Path(__file__).parents[1]))
    from benchmarks.test_models import training_step

    step = training_step(name, torch.device("cpu"))(
        (lambda f: torch.compile(f, backend="pspfast")) if side == "ours" else lambda f: f
    )
    step()
    # What the first one freed would count as there before the second.
    ctypes.CDLL(None).malloc_trim(0)
    return step


def main(task: str, side: str) -> None:
    name, *numbers = task.split("-")
    if name == "loss":
        run = loss_task(side, *map(int, numbers))
    elif task == "training-step":
        run = training_task(side)
    else:
        run = model_task(side, task)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    run()
    print(resident("VmHWM"), resident("VmHWM") - before)


if __name__ == "__main__":
    main(*sys.argv[1:])

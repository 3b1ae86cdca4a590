"""The gradient and the loss of a step, over parts and processes."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from pspfast.config import Config
from pspfast.scores import ConfusionMatrix

ADVICE = "nothing was saved since; a smaller train.lr may help"


def backward(
    accelerator: Accelerator,
    model: nn.Module,
    parts: list[tuple[Tensor, Tensor]],
    config: Config,
    confusion: ConfusionMatrix,
) -> Tensor:
    """Adds the gradient of the mean loss over the labelled pixels of all parts and processes.

    Args:
        accelerator: of the run.
        model: in training mode, prepared.
        parts: this process's images ``[N, 3, H, W]`` and labels ``[N, h, w]``, on its device.
        config: its ``ignore_index`` and ``aux_weight`` count.
        confusion: gets the labels that were predicted.

    Returns:
        A scalar, of which the mean over the processes is the loss. 0 where nothing is labelled.
    """
    ignored = config.data.ignore_index
    counts = torch.stack([labels.ne(ignored).sum() for _, labels in parts]).float()
    # DDP and FSDP take the mean over the processes.
    processes = accelerator.num_processes
    total = accelerator.reduce(counts.sum(), "sum").clamp(min=1)
    losses = []
    for i, (images, labels) in enumerate(parts):
        last = i == len(parts) - 1
        context: Any = nullcontext() if last else accelerator.no_sync(model)
        with context:
            with accelerator.autocast():
                predicted, main_loss, aux_loss = model(images, labels)
            # The mean over no pixels is NaN.
            mean = torch.where(counts[i] > 0, main_loss + config.train.aux_weight * aux_loss, 0.0)
            loss = mean * (counts[i] * processes / total)
            accelerator.backward(loss)
        losses.append(loss.detach())
        confusion.update(predicted, labels)
    return torch.stack(losses).sum()


class Losses:
    """The losses of consecutive steps. Reading waits for the device, so they are read in groups.

    Args:
        accelerator: of the run.
        iteration: steps done before.
    """

    def __init__(self, accelerator: Accelerator, iteration: int) -> None:
        self._accelerator = accelerator
        self._iteration = iteration
        self._unread: list[Tensor] = []
        self._read: list[float] = []

    def add(self, loss: Tensor) -> None:
        """What ``backward`` returned."""
        self._unread.append(loss)

    def read(self) -> float:
        """The mean loss of all steps; every process calls it.

        Raises:
            FloatingPointError: one was not finite; the message says which.
        """
        if self._unread:
            losses = torch.stack(self._unread)
            self._unread = []
            self._read += self._accelerator.reduce(losses, "mean").tolist()
        for step, loss in enumerate(self._read, self._iteration + 1):
            if not math.isfinite(loss):
                raise FloatingPointError(f"the loss is {loss} in step {step}; {ADVICE}")
        return sum(self._read) / max(1, len(self._read))

    @property
    def last(self) -> float:
        """Of the steps that were read."""
        return self._read[-1]

"""The batches of a run, on its device and in step with the other processes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from tqdm import tqdm

from pspfast.config import Config
from pspfast.data.datasets import SeededDataset
from pspfast.data.usable_samples import UsableSamples
from pspfast.distributed import bar_disabled
from pspfast.labelled_data import make_loader
from pspfast.training.data import train_batches

Batch = tuple[Tensor, Tensor]


class BatchLoader:
    """Loads batches, and tells of samples that cannot be used.

    Args:
        config: its data section, ``train`` and ``zoom_factor`` count.
        accelerator: of the run.
        agree: called before every step and validation image with the problem of this process, if
            it has one; raises where any process has one or is to stop.
    """

    def __init__(
        self, config: Config, accelerator: Accelerator, agree: Callable[[str], None]
    ) -> None:
        self._config, self._accelerator, self._agree = config, accelerator, agree
        self.memory_format = (
            torch.channels_last if config.train.channels_last else torch.contiguous_format
        )
        self._skipped: list[str] = []

    def train(self, dataset: SeededDataset, epoch: int, first_step: int) -> Iterator[list[Batch]]:
        """The parts of each step of an epoch, from its step ``first_step`` on."""
        options, data, accelerator = self._config.train, self._config.data, self._accelerator
        dataset.set_epoch(epoch)
        self._skipped = []
        batches = train_batches(
            len(dataset),
            options.batch_size,
            options.seed + epoch,
            accelerator.num_processes,
            options.accumulate,
        )
        rest = batches[first_step:, accelerator.process_index].flatten(0, 1).tolist()
        loader = iter(make_loader(UsableSamples(dataset), rest, data.workers))
        stride = 8 // self._config.model.zoom_factor
        # As many at a time as there are parts in a step.
        for loaded in zip(*[loader] * options.accumulate, strict=True):
            problems = [text for *_, texts in loaded for text in texts if text]
            if data.skip_bad:
                self._skip(problems)
                problems = []
            self._agree("\n".join(problems))
            yield [
                (
                    images.to(
                        accelerator.device, memory_format=self.memory_format, non_blocking=True
                    ),
                    # A view of pinned memory would be copied to other memory, and that waited for.
                    labels.to(accelerator.device, non_blocking=True)[:, ::stride, ::stride],
                )
                for images, labels, _ in loaded
            ]

    def skipped(self) -> list[str]:
        """What was wrong with each sample skipped since ``train``; every process calls it."""
        return gather_object(self._skipped)

    def validation(self, dataset: SeededDataset) -> Iterator[Batch]:
        """Single images, since sizes may differ; as many for each process, so that they agree."""
        count, processes = len(dataset), self._accelerator.num_processes
        rounds = -(-count // processes)
        places = range(self._accelerator.process_index, rounds * processes, processes)
        loader = make_loader(
            UsableSamples(dataset), [[i % count] for i in places], self._config.data.workers
        )
        bar: Iterable[tuple[Tensor, Tensor, list[str]]] = tqdm(
            loader, desc="validation", leave=False, disable=bar_disabled(self._accelerator)
        )
        for place, (images, labels, problems) in zip(places, bar, strict=True):
            self._agree("".join(problems))
            if place >= count:
                # Another process counts this one.
                labels = torch.full_like(labels, self._config.data.ignore_index)
            yield images, labels

    def _skip(self, problems: list[str]) -> None:
        for text in "\n".join(problems).splitlines():
            tqdm.write(f"skipped {text}", file=sys.stderr)
            self._skipped.append(text)

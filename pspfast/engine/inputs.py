"""From the data options to checked data sets, and from data sets to batches."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pspfast.data import (
    CLASSES,
    EvalTransform,
    SegmentationDataset,
    Taxonomy,
    TrainTransform,
    check_samples,
    folder_samples,
    list_file_samples,
)
from pspfast.data.datasets import SeededDataset
from pspfast.engine.config import Config, DataConfig


def choose_taxonomy(classes: str | int) -> Taxonomy:
    """A built-in class list by name, or generic names for a number of classes."""
    if isinstance(classes, int):
        return Taxonomy.generic(classes)
    if classes not in CLASSES:
        raise ValueError(
            f"data.classes: expected one of {sorted(CLASSES)} or a number, got {classes!r}"
        )
    return CLASSES[classes]


def find_samples(
    data: DataConfig, split: Literal["train", "val"], classes: int
) -> list[tuple[Path, Path | None]]:
    """Pairs of image and label files, each opened and checked; empty when the split is not given.

    Raises:
        ValueError: a file is broken, sizes differ, a label is no class, or the list is empty.
        FileNotFoundError: a file is missing.
    """
    list_file, images, labels = (
        getattr(data, f"{split}_{name}") for name in ("list", "images", "labels")
    )
    if not list_file and not images:
        return []
    return checked_samples(list_file, images, labels, data.root, classes, data.ignore_index)


def checked_samples(
    list_file: str | None,
    images: str | None,
    labels: str | None,
    root: str | None,
    classes: int,
    ignore_index: int,
) -> list[tuple[Path, Path | None]]:
    """Samples of a list file or of two folders, see ``DataConfig``; raises as ``find_samples``."""
    if list_file:
        path = Path(list_file)
        if root and not path.exists():
            path = root / path
        samples = list_file_samples(path, root)
    elif images and labels:
        base = Path(root or "")
        samples = folder_samples(base / images, base / labels)
    else:
        raise ValueError("expected a list file, or a folder of images and one of labels")
    check_samples(samples, classes, ignore_index, progress=sys.stderr.isatty())
    return samples


def make_train_set(config: Config, classes: int) -> SegmentationDataset:
    """The training samples with their augmentation; raises as ``find_samples``."""
    samples = find_samples(config.data, "train", classes)
    if not samples:
        raise ValueError("data: expected train_list or train_images with train_labels, got neither")
    return SegmentationDataset(samples, make_train_transform(config), seed=config.train.seed)


def make_train_transform(config: Config) -> TrainTransform:
    """The augmentation of a configuration."""
    return TrainTransform(**vars(config.augment), ignore_index=config.data.ignore_index)


def make_val_set(data: DataConfig, classes: int) -> SegmentationDataset | None:
    """The whole validation images, if there are any; raises as ``find_samples``."""
    samples = find_samples(data, "val", classes)
    return SegmentationDataset(samples, EvalTransform()) if samples else None


def steps_per_epoch(dataset: SeededDataset, batch_size: int, world_size: int) -> int:
    """Whole batches in a data set; the samples of an incomplete one wait for another epoch."""
    if batch_size % world_size:
        raise ValueError(
            f"train.batch_size: expected a multiple of the {world_size} processes, got {batch_size}"
        )
    if len(dataset) < batch_size:
        raise ValueError(
            f"train.batch_size: expected at most the {len(dataset)} training samples, "
            f"got {batch_size}"
        )
    return len(dataset) // batch_size


def train_batches(samples: int, batch_size: int, seed: int, world_size: int = 1) -> Tensor:
    """Shuffled sample indices ``[steps, world_size, batch_size / world_size]``.

    The order depends on the seed alone, so that an epoch can be resumed at any of its steps.
    """
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(seed))
    steps = samples // batch_size
    return order[: steps * batch_size].view(steps, world_size, -1)


def make_loader(dataset: SeededDataset, batches: list[list[int]], workers: int) -> DataLoader[Any]:
    """Loads the given batches of sample indices, in this order."""
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_leave_signals_to_parent,
        # The loader draws a seed for its workers, which must not come out of the dropout's stream.
        generator=torch.Generator(),
    )


def _leave_signals_to_parent(worker: int) -> None:
    # Ctrl-C, or a kill of the whole process group, reaches the workers too, and the training
    # process still needs them for its step. Whoever ends a worker on purpose, the loader and then
    # multiprocessing, sends the signal twice; hence the first one does not count.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(
        signal.SIGTERM, lambda number, frame: signal.signal(signal.SIGTERM, signal.SIG_DFL)
    )

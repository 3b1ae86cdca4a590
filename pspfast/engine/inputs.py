"""From the data options to checked data sets, and from data sets to batches."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader, Dataset, Subset

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
from pspfast.engine.config import AugmentConfig, DataConfig


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
) -> list[tuple[Path, Path]]:
    """Pairs of image and label files, each opened and checked; empty when the split is not given.

    Raises:
        ValueError: a file is broken, sizes differ, a label is no class, or the list is empty.
        FileNotFoundError: a file is missing.
    """
    root = Path(data.root) if data.root else None
    list_file, images = getattr(data, f"{split}_list"), getattr(data, f"{split}_images")
    if list_file:
        path = Path(list_file)
        if root and not path.exists():
            path = root / path
        samples = list_file_samples(path, root)
    elif images:
        base = root or Path()
        samples = folder_samples(base / images, base / getattr(data, f"{split}_labels"))
    else:
        return []
    check_samples(samples, classes, data.ignore_index)
    return samples


def make_train_set(
    data: DataConfig, augment: AugmentConfig, classes: int, seed: int
) -> SegmentationDataset:
    samples = find_samples(data, "train", classes)
    if not samples:
        raise ValueError("data: expected train_list or train_images with train_labels, got neither")
    return SegmentationDataset(samples, make_train_transform(data, augment), seed=seed)


def make_train_transform(data: DataConfig, augment: AugmentConfig) -> TrainTransform:
    return TrainTransform(**vars(augment), ignore_index=data.ignore_index)


def make_val_set(data: DataConfig, classes: int) -> SegmentationDataset | None:
    samples = find_samples(data, "val", classes)
    return SegmentationDataset(samples, EvalTransform()) if samples else None


def train_batches(
    dataset: Dataset[Any], batch_size: int, workers: int, seed: int, epoch: int, skip: int = 0,
    rank: int = 0, world_size: int = 1,
) -> DataLoader[Any]:
    """Batches of one epoch in an order that depends on seed and epoch alone.

    Args:
        dataset: with ``set_epoch``.
        batch_size: images per step, over all processes.
        workers: loading processes.
        seed: of the order.
        epoch: from 0.
        skip: steps of the epoch that are done.
        rank: this process, which takes its part of every batch.
        world_size: number of processes; divides ``batch_size``.
    """
    dataset.set_epoch(epoch)
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed + epoch))
    steps = len(dataset) // batch_size
    batches = order[: steps * batch_size].view(steps, world_size, batch_size // world_size)
    return _loader(dataset, batches[skip:, rank].tolist(), workers)


def val_batches(
    dataset: Dataset[Any], workers: int, rank: int = 0, world_size: int = 1
) -> DataLoader[Any]:
    """Single images, since sizes may differ; every process takes its own part of the set."""
    part = Subset(dataset, range(rank, len(dataset), world_size))
    return _loader(part, [[i] for i in range(len(part))], workers)


def _loader(dataset: Dataset[Any], batches: list[list[int]], workers: int) -> DataLoader[Any]:
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
    # A Ctrl-C reaches every process of the terminal; the training process finishes its step first.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

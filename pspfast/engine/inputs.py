"""From the data options to checked data sets, and from data sets to batches."""

from __future__ import annotations

import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pspfast.data import (
    CLASSES,
    LABEL_IDS,
    EvalTransform,
    LabelIds,
    SegmentationDataset,
    Taxonomy,
    TrainTransform,
    check_samples,
    folder_samples,
    list_file_samples,
    published_samples,
)
from pspfast.data.datasets import Sample, SeededDataset
from pspfast.data.sources import Split
from pspfast.engine.config import Config, DataConfig, TrainConfig
from pspfast.engine.samples import CheckedDataset, UsableSamples


def choose_taxonomy(classes: str | int) -> Taxonomy:
    """A built-in class list by name, or generic names for a number of classes."""
    if isinstance(classes, int):
        return Taxonomy.generic(classes)
    if classes not in CLASSES:
        raise ValueError(
            f"data.classes: expected one of {sorted(CLASSES)} or a number, got {classes!r}"
        )
    return CLASSES[classes]


def choose_label_ids(data: DataConfig, classes: int) -> LabelIds | None:
    """What the ids in the label files mean; None where they are class ids."""
    if data.labels == "ids":
        return None
    label_ids = LABEL_IDS[data.labels]
    if label_ids.num_classes != classes:
        raise ValueError(
            f"data.labels: {data.labels} is for {label_ids.num_classes} classes, "
            f"got {classes} of data.classes"
        )
    return replace(label_ids, ignore_index=data.ignore_index)


def find_samples(data: DataConfig, split: Split, classes: int) -> list[Sample]:
    """Pairs of image and label files, each opened and checked; empty when the split is not given.

    Training samples are not opened where those that cannot be used are to be skipped.

    Raises:
        ValueError: a file is broken, sizes differ, a label is no class, or the list is empty.
        FileNotFoundError: a file is missing.
    """
    list_file, images, labels = (
        getattr(data, f"{split}_{name}") for name in ("list", "images", "labels")
    )
    label_ids = choose_label_ids(data, classes)
    if list_file or images:
        samples = listed_samples(list_file, images, labels, data.root)
    elif data.source is None:
        return []
    elif data.root is None:
        raise ValueError(f"data.root: expected the folder of {data.source}, got none")
    else:
        samples = published_samples(data.source, data.root, split)
    if not (split == "train" and data.skip_bad):
        check_samples(samples, classes, data.ignore_index, sys.stderr.isatty(), label_ids)
    return samples


def listed_samples(
    list_file: str | None, images: str | None, labels: str | None, root: str | None
) -> list[Sample]:
    """Samples of a list file or of two folders, see ``DataConfig``."""
    if list_file:
        path = Path(list_file)
        if root and not path.exists():
            path = root / path
        return list_file_samples(path, root)
    if images and labels:
        base = Path(root or "")
        return folder_samples(base / images, base / labels)
    raise ValueError("expected a list file, or a folder of images and one of labels")


def make_train_set(config: Config, classes: int) -> SegmentationDataset:
    """The training samples with their augmentation; raises as ``find_samples``."""
    samples = find_samples(config.data, "train", classes)
    if not samples:
        raise ValueError(
            "data: expected train_list or train_images with train_labels, or source, got none"
        )
    label_ids = choose_label_ids(config.data, classes)
    return CheckedDataset(
        samples,
        make_train_transform(config),
        config.train.seed,
        label_ids,
        classes=classes,
        ignore_index=config.data.ignore_index,
    )


def make_train_transform(config: Config) -> TrainTransform:
    """The augmentation of a configuration."""
    return TrainTransform(**vars(config.augment), ignore_index=config.data.ignore_index)


def make_val_set(data: DataConfig, classes: int) -> SegmentationDataset | None:
    """The whole validation images, if there are any; raises as ``find_samples``."""
    samples = find_samples(data, "val", classes)
    if not samples:
        return None
    return SegmentationDataset(samples, EvalTransform(), label_ids=choose_label_ids(data, classes))


def steps_per_epoch(dataset: SeededDataset, options: TrainConfig, world_size: int) -> int:
    """Whole batches in a data set; the samples of an incomplete one wait for another epoch."""
    batch_size, parts = options.batch_size, world_size * options.accumulate
    if batch_size % parts:
        raise ValueError(
            f"train.batch_size: expected a multiple of {parts}, for {world_size} processes with "
            f"train.accumulate {options.accumulate} each, got {batch_size}"
        )
    if len(dataset) < batch_size:
        raise ValueError(
            f"train.batch_size: expected at most the {len(dataset)} training samples, "
            f"got {batch_size}"
        )
    return len(dataset) // batch_size


def train_batches(
    samples: int, batch_size: int, seed: int, world_size: int = 1, accumulate: int = 1
) -> Tensor:
    """Shuffled sample indices ``[steps, world_size, accumulate, parts of batch_size]``.

    The order depends on the seed alone, so that an epoch can be resumed at any of its steps, and a
    step has the same samples however many processes share them.
    """
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(seed))
    steps = samples // batch_size
    return order[: steps * batch_size].view(steps, world_size, accumulate, -1)


def make_loader(
    dataset: SeededDataset | UsableSamples, batches: list[list[int]], workers: int
) -> DataLoader[Any]:
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

"""Labelled images: from the data options to checked samples, and from samples to batches."""

from __future__ import annotations

import signal
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from pspfast.config import DataConfig
from pspfast.data import (
    CLASSES,
    LABEL_IDS,
    ClassList,
    LabelIds,
    check_samples,
    folder_samples,
    list_file_samples,
    published_samples,
)
from pspfast.data.datasets import SeededDataset
from pspfast.data.samples import Sample
from pspfast.data.search import listed
from pspfast.data.sources import Split
from pspfast.data.usable_samples import UsableSamples


def choose_class_list(classes: str | int) -> ClassList:
    """A built-in class list by name, or generic names for a number of classes."""
    if isinstance(classes, int):
        return ClassList.generic(classes)
    if classes not in CLASSES:
        raise ValueError(
            f"data.classes: expected one of {sorted(CLASSES)} or a number, got {classes!r}"
        )
    return CLASSES[classes]


def choose_label_ids(data: DataConfig, classes: int) -> LabelIds | None:
    """What the ids in the label files mean; None where they are class ids."""
    if data.labels == "ids":
        if data.label_map is None:
            return None
        return LabelIds.mapped(data.label_map, classes, data.ignore_index)
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
        counts = check_samples(samples, classes, data.ignore_index, sys.stderr.isatty(), label_ids)
        _warn_of_counts(counts, split, data, classes)
    return samples


def _warn_of_counts(
    counts: NDArray[np.int64], split: Split, data: DataConfig, classes: int
) -> None:
    """Warns of labels that cannot be meant: classes that never occur in training, nothing but
    ignored pixels."""
    names = choose_class_list(data.classes).names
    shares = ", ".join(
        f"{i}{' (ignored)' if i == data.ignore_index else ''} {count / counts.sum():.1%}"
        for i, count in enumerate(counts)
        if count
    )
    trained = [i for i in range(classes) if i != data.ignore_index]
    absent = [names[i] for i in trained if not counts[i]]
    is_mask = counts[255] and data.ignore_index == 255 and len(trained) - len(absent) < 2
    hint = ""
    if is_mask and data.label_map is None:
        hint = "; for masks of 0 and 255: --data.label_map '{255: 1}'"
    if len(absent) == len(trained):
        problem = f"all pixels of the {split} labels are ignored"
    elif absent and split == "train":
        occur = f"classes occur in no training label: {listed(absent, 10)}"
        problem = f"{len(absent)} of {classes} {occur}"
    else:
        return
    warnings.warn(f"{problem}; counted ids: {shares}{hint}", stacklevel=3)


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

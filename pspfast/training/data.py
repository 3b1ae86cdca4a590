"""The data sets of a training run, and which samples a step gets."""

from __future__ import annotations

import torch
from torch import Tensor

from pspfast.config import Config, DataConfig, TrainConfig
from pspfast.data import EvalTransform, SegmentationDataset, TrainTransform
from pspfast.data.datasets import SeededDataset
from pspfast.data.usable_samples import CheckedDataset
from pspfast.labelled_data import choose_label_ids, find_samples


def make_train_set(config: Config, classes: int) -> SegmentationDataset:
    """The training samples with their augmentation; raises as ``find_samples``."""
    if config.model.in_channels != 3:
        raise ValueError(
            "model.in_channels: expected 3, the channels of images in files, got "
            f"{config.model.in_channels}"
        )
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
    return TrainTransform(
        **vars(config.augment),
        ignore_index=config.data.ignore_index,
        mean=config.data.mean,
        std=config.data.std,
        channel_order=config.data.channel_order,
    )


def make_val_set(data: DataConfig, classes: int) -> SegmentationDataset | None:
    """The whole validation images, if there are any; raises as ``find_samples``."""
    samples = find_samples(data, "val", classes)
    if not samples:
        return None
    transform = EvalTransform(data.mean, data.std, channel_order=data.channel_order)
    return SegmentationDataset(samples, transform, label_ids=choose_label_ids(data, classes))


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

"""Evaluation of a model on labelled images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from pspfast.data import ClassList, SegmentationDataset
from pspfast.data.usable_samples import UsableSamples
from pspfast.distributed import bar_disabled, make_accelerator
from pspfast.evaluation.examples import draw_examples
from pspfast.evaluation.image_scores import ImageScorer
from pspfast.evaluation.options import EvalConfig
from pspfast.evaluation.output import make_record, save_scores
from pspfast.labelled_data import choose_label_ids, find_samples, make_loader
from pspfast.model_files import eval_transform, load_model
from pspfast.models import PSPNet, optimize_for_inference
from pspfast.models.multi_scale import SlidingLogits, SlidingProbabilities, WholeImage
from pspfast.models.windows import Size, semseg_stride
from pspfast.scores import Predictor, Scores, evaluate, make_confusion

_DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def evaluate_files(options: EvalConfig) -> tuple[Scores, ClassList]:
    """Scores a trained model on labelled images, and writes the files of ``options.output``.

    Several processes share the images, and all get the scores of all of them.

    Returns:
        The scores, and the classes that the model was trained for.

    Raises:
        ValueError, FileNotFoundError: checkpoint, data or options are wrong; before anything is
            evaluated. ValueError: a file broke after it was checked.
        OSError: ``options.output`` cannot be a folder; likewise.
    """
    trained = load_model(options.checkpoint)
    transform = eval_transform(trained)
    classes, ignore_index = trained.class_list.num_classes, trained.config.data.ignore_index
    data = replace(
        trained.config.data,
        val_list=options.list,
        val_images=options.images,
        val_labels=options.labels,
        root=options.root,
        source=options.source,
        labels=options.label_ids or trained.config.data.labels,
    )
    samples, label_ids = find_samples(data, "val", classes), choose_label_ids(data, classes)
    accelerator = make_accelerator(options.precision)
    device = accelerator.device
    model = optimize_for_inference(trained.model.to(device), _DTYPES[options.precision])
    protocol = make_protocol(model, options, trained.config.augment.crop_size)
    if options.output:
        Path(options.output).mkdir(parents=True, exist_ok=True)
    own = range(accelerator.process_index, len(samples), accelerator.num_processes)
    dataset = SegmentationDataset(samples, transform, label_ids=label_ids)
    loader = make_loader(UsableSamples(dataset), [[i] for i in own], options.workers)
    bar = tqdm(loader, desc="evaluate", unit=" images", disable=bar_disabled(accelerator))
    confusion = make_confusion(classes, ignore_index, device)
    scorer = ImageScorer(own, classes, ignore_index) if options.output else None
    scores = evaluate(protocol, _usable(bar), confusion, device, observe=scorer)
    images = scorer.gather() if scorer else None
    if options.output and images and accelerator.is_main_process:
        record = make_record(scores, trained.class_list, options, device, samples, images)
        figure = scores.picture(trained.class_list.names)
        examples = draw_examples(images, dataset, trained.class_list)
        save_scores(options.output, record, figure, examples, trained.class_list)
    return scores, trained.class_list


def _usable(
    batches: Iterable[tuple[Tensor, Tensor, list[str]]],
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of ``UsableSamples``; a file that broke after it was checked is an error."""
    for images, labels, problems in batches:
        if any(problems):
            raise ValueError("\n".join(filter(None, problems)))
        yield images, labels


def make_protocol(model: PSPNet, options: EvalConfig, crop_size: Size) -> Predictor:
    """The protocol that the options name.

    Args:
        model: in evaluation mode.
        options: those of the protocol count.
        crop_size: (H, W) of the windows where the options have none.

    Raises:
        ValueError: windows would leave gaps, or the model cannot have windows of this size.
    """
    augmentation: dict[str, Any] = {
        "model": model,
        "scales": options.scales,
        "flip": options.flip,
        "base_size": options.base_size,
    }
    if options.protocol == "whole":
        is_plain = options.scales == (1.0,) and not options.flip and options.base_size is None
        return model if is_plain else WholeImage(**augmentation)
    crop = options.crop_size or crop_size
    stride = options.stride or semseg_stride(crop)
    if stride[0] > crop[0] or stride[1] > crop[1]:
        raise ValueError(f"stride: expected at most crop_size, {list(crop)}, got {list(stride)}")
    windows: dict[str, Any] = {"crop": crop, "stride": stride, "window_batch": options.window_batch}
    if options.protocol == "semseg":
        return SlidingProbabilities(**augmentation, **windows)
    return SlidingLogits(**augmentation, **windows)

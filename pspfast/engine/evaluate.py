"""Evaluation of a model on labelled images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix
from tqdm import tqdm

from pspfast.data import EvalTransform, SegmentationDataset, Taxonomy
from pspfast.engine.config import EvalConfig
from pspfast.engine.inputs import choose_label_ids, find_samples, make_loader
from pspfast.engine.protocols import Predictor, make_protocol
from pspfast.engine.samples import UsableSamples
from pspfast.engine.scores import Scores, save_scores
from pspfast.engine.together import bar_disabled, make_accelerator
from pspfast.engine.weights import load_model
from pspfast.models import optimize_for_inference

__all__ = ["Scores", "evaluate", "evaluate_files", "make_confusion"]

_DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def evaluate_files(options: EvalConfig) -> tuple[Scores, Taxonomy]:
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
    classes, ignore_index = trained.taxonomy.num_classes, trained.config.data.ignore_index
    data = replace(
        trained.config.data,
        val_list=options.list,
        val_images=options.images,
        val_labels=options.labels,
        root=options.root,
        source=options.source,
    )
    samples, label_ids = find_samples(data, "val", classes), choose_label_ids(data, classes)
    accelerator = make_accelerator(options.precision)
    device = accelerator.device
    model = optimize_for_inference(trained.model.to(device), _DTYPES[options.precision])
    protocol = make_protocol(model, options, trained.config.augment.crop_size)
    if options.output:
        Path(options.output).mkdir(parents=True, exist_ok=True)
    loader = make_loader(
        UsableSamples(SegmentationDataset(samples, EvalTransform(), label_ids=label_ids)),
        [[i] for i in range(accelerator.process_index, len(samples), accelerator.num_processes)],
        options.workers,
    )
    bar = tqdm(loader, desc="evaluate", unit=" images", disable=bar_disabled(accelerator))
    scores = evaluate(protocol, _usable(bar), make_confusion(classes, ignore_index, device), device)
    if options.output and accelerator.is_main_process:
        save_scores(options.output, scores, trained.taxonomy, options, device)
    return scores, trained.taxonomy


def _usable(
    batches: Iterable[tuple[Tensor, Tensor, list[str]]],
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of ``UsableSamples``; a file that broke after it was checked is an error."""
    for images, labels, problems in batches:
        if any(problems):
            raise ValueError("\n".join(filter(None, problems)))
        yield images, labels


def make_confusion(
    classes: int, ignore_index: int, device: torch.device
) -> MulticlassConfusionMatrix:
    """Confusion matrix that accumulates on the device and sums over processes in ``compute``."""
    # Labels are checked before training and evaluation; checking each batch would synchronise.
    matrix = MulticlassConfusionMatrix(classes, ignore_index=ignore_index, validate_args=False)
    return matrix.to(device)


@torch.inference_mode()
def evaluate(
    model: Predictor,
    batches: Iterable[tuple[Tensor, Tensor]],
    confusion: MulticlassConfusionMatrix,
    device: torch.device,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Scores:
    """Scores the labels of ``model.predict``, at the images' own size.

    Args:
        model: the network, left in the mode it was in, or a protocol.
        batches: images ``[N, 3, H, W]`` and labels ``[N, H, W]``.
        confusion: empty matrix, see ``make_confusion``.
        device: where the model is.
        memory_format: of the images.
    """
    for images, labels in batches:
        images = images.to(device, memory_format=memory_format, non_blocking=True)
        confusion.update(model.predict(images), labels.to(device, non_blocking=True))
    return Scores(confusion.compute().cpu())

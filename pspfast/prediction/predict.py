"""Segmentation of images and videos with a trained model."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from numpy.typing import NDArray
from tqdm import tqdm

from pspfast.data import overlay
from pspfast.data.search import LeftOut
from pspfast.labelled_data import choose_label_ids
from pspfast.model_files import TrainedModel, load_model
from pspfast.prediction.inputs import (
    Input,
    batches_of_one_size,
    find_inputs,
    read_pictures,
)
from pspfast.prediction.options import PredictConfig
from pspfast.prediction.outputs import ClassShares, save_pictures
from pspfast.prediction.segmenter import Segmenter
from pspfast.prediction.video import check_video_support, redraw_video


@dataclass
class Predictions:
    """What became of the inputs.

    Attributes:
        shares: of the classes in each.
        written: the files.
        left_out: what folders and patterns hold besides.
        failures: what could not be read or written, each with the file's name and the reason.
    """

    shares: ClassShares
    left_out: LeftOut
    written: list[Path] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)


def predict(options: PredictConfig) -> Predictions:
    """Segments images and videos and writes what ``options.outputs`` names.

    An input that cannot be read is left out and reported. Files appear complete or not at all, in
    place of those of an earlier run.

    Raises:
        ValueError, FileNotFoundError: checkpoint or options are wrong, an input matches no file, or
            there is a video and no PyAV; before anything is written.
    """
    trained = load_model(options.checkpoint)
    found = find_inputs(options.inputs, Path(options.output))
    images = [source for source in found.inputs if not source.is_video]
    videos = [source for source in found.inputs if source.is_video]
    for video in videos:
        check_video_support(video.path)
    device = PartialState().device
    segmenter = Segmenter(trained, device, options.crop_size, options.batch_size)
    predictions = Predictions(
        ClassShares(trained.class_list.names), left_out=found.left_out, failures=found.failures
    )
    _predict_images(images, segmenter, trained, options, predictions)
    for video in videos:
        _predict_video(video, segmenter, trained, options, predictions)
    if "shares" in options.outputs:
        table = Path(options.output) / "shares.csv"
        predictions.shares.save(table)
        predictions.written.append(table)
    return predictions


def _predict_images(
    images: list[Input],
    segmenter: Segmenter,
    trained: TrainedModel,
    options: PredictConfig,
    predictions: Predictions,
) -> None:
    label_ids = choose_label_ids(trained.config.data, trained.class_list.num_classes)
    bar = tqdm(images, "predict", unit=" images", disable=None)
    pictures = read_pictures(bar, predictions.failures)
    for batch in batches_of_one_size(pictures, options.batch_size):
        labels = segmenter([picture.image for picture in batch])
        for picture, ids in zip(batch, labels, strict=True):
            stem = f"{options.output}/{picture.source.name}"
            try:
                predictions.written += save_pictures(
                    stem,
                    picture.pixels,
                    ids,
                    trained.class_list,
                    options.alpha,
                    options.outputs,
                    label_ids,
                )
            except OSError as error:
                # Of other errors, a full disk for one, the next file would have the same.
                if error.errno not in (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL):
                    raise
                problem = f"{picture.source.path}: the outputs cannot have its name: {error}"
                predictions.failures.append(ValueError(problem))
            else:
                predictions.shares.add(str(picture.source.path), ids)


def _predict_video(
    video: Input,
    segmenter: Segmenter,
    trained: TrainedModel,
    options: PredictConfig,
    predictions: Predictions,
) -> None:
    shares = ClassShares(trained.class_list.names)

    def redraw(frames: list[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
        labels = segmenter([torch.from_numpy(frame).permute(2, 0, 1) for frame in frames])
        for ids in labels:
            shares.add(str(video.path), ids)
        pairs = zip(frames, labels, strict=True)
        return [overlay(frame, ids, trained.class_list, options.alpha) for frame, ids in pairs]

    target = Path(f"{options.output}/{video.name}_overlay.mp4")
    try:
        redraw_video(video.path, target, redraw, options.batch_size)
    except ValueError as error:
        predictions.failures.append(error)
        return
    # A video that broke off counts in no share.
    predictions.shares.counts |= shares.counts
    predictions.written.append(target)

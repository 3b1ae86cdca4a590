"""What ``pspfast eval --output`` writes: the scores as JSON, a picture and a page."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from pspfast import __version__
from pspfast.data import ClassList
from pspfast.data.samples import Sample
from pspfast.evaluation.examples import Example
from pspfast.evaluation.image_scores import ImageScores
from pspfast.evaluation.options import EvalConfig
from pspfast.evaluation.report import report_page
from pspfast.files import atomic_open
from pspfast.scores import Scores


def make_record(
    scores: Scores,
    class_list: ClassList,
    options: EvalConfig,
    device: torch.device,
    samples: Sequence[Sample],
    images: ImageScores,
) -> dict[str, Any]:
    """What ``scores.json`` holds, and the page shows.

    The overall scores, those of every class and of every image, the pixel counts of the confusion
    matrix with labels in rows, the options and the versions; None is the score of an absent class.
    """
    per_class = zip(
        class_list.names,
        scores.iou.tolist(),
        scores.accuracy.tolist(),
        scores.confusion.sum(1).tolist(),
        strict=True,
    )
    return {
        "scores": {name: _or_none(value) for name, value in scores.summary().items()},
        "classes": {
            name: {"IoU": _or_none(iou), "acc": _or_none(accuracy), "pixels": pixels}
            for name, iou, accuracy, pixels in per_class
        },
        "images": [
            {
                "image": str(samples[image.sample][0]),
                "mIoU": _or_none(image.mean_iou),
                "pixel_acc": _or_none(image.pixel_accuracy),
            }
            for image in images.scores
        ],
        "confusion": scores.confusion.tolist(),
        "options": asdict(options),
        "versions": {"pspfast": __version__, "torch": torch.__version__},
        "device": device.type,
    }


def save_scores(
    folder: str | Path,
    record: dict[str, Any],
    confusion: Figure,
    examples: Sequence[Example],
    class_list: ClassList,
) -> None:
    """Writes ``scores.json``, ``confusion.png`` and ``report.html`` into a folder.

    Args:
        folder: is made if there is none.
        record: see ``make_record``.
        confusion: picture of the confusion matrix.
        examples: images for the page.
        class_list: the classes.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, indent=2, allow_nan=False) + "\n"
    with atomic_open(folder / "scores.json") as file:
        file.write(text.encode())
    with atomic_open(folder / "confusion.png") as file:
        confusion.savefig(file, format="png", dpi=100)
    page = report_page(record, class_list, examples, (folder / "confusion.png").read_bytes())
    with atomic_open(folder / "report.html") as file:
        # Names of files may hold bytes that are no UTF-8 (PEP 383).
        file.write(page.encode(errors="backslashreplace"))


def _or_none(score: float) -> float | None:
    return None if math.isnan(score) else score

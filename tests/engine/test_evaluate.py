"""Scores against numpy."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pspfast.engine.config import EvalConfig, PredictConfig
from pspfast.engine.evaluate import Scores, evaluate, evaluate_files, make_confusion
from pspfast.engine.predict import predict

CPU = torch.device("cpu")


class Fixed(torch.nn.Module):
    """A model whose prediction is the image's first channel."""

    def predict(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, 0].long()


def numpy_scores(pairs: list[tuple[np.ndarray, np.ndarray]], classes: int) -> dict[str, np.ndarray]:
    labels = np.concatenate([label[label != 255] for label, _ in pairs])
    predicted = np.concatenate([pred[label != 255] for label, pred in pairs])
    iou, accuracy = np.full(classes, np.nan), np.full(classes, np.nan)
    for c in range(classes):
        hits = np.sum((labels == c) & (predicted == c))
        union = np.sum((labels == c) | (predicted == c))
        if union:
            iou[c] = hits / union
        if np.any(labels == c):
            accuracy[c] = hits / np.sum(labels == c)
    return {"iou": iou, "accuracy": accuracy, "pixel_accuracy": np.mean(labels == predicted)}


def test_scores_against_numpy() -> None:
    random = np.random.default_rng(0)
    pairs = []
    for size in ((5, 9), (7, 4), (1, 1)):
        # Class 3 is in no label but predicted, class 4 is nowhere.
        label = random.choice([0, 1, 2, 255], size)
        pairs.append((label, random.choice([0, 1, 2, 3], size)))
    batches = [
        (torch.from_numpy(pred)[None, None].float(), torch.from_numpy(label)[None])
        for label, pred in pairs
    ]
    scores = evaluate(Fixed(), batches, make_confusion(5, 255, CPU), CPU)
    expected = numpy_scores(pairs, 5)
    np.testing.assert_allclose(scores.iou, expected["iou"])
    np.testing.assert_allclose(scores.accuracy, expected["accuracy"])
    assert scores.iou[3] == 0
    assert scores.mean_iou == pytest.approx(np.nanmean(expected["iou"]))
    assert scores.mean_accuracy == pytest.approx(np.nanmean(expected["accuracy"]))
    assert scores.pixel_accuracy == pytest.approx(expected["pixel_accuracy"])


def test_table_shows_every_class() -> None:
    scores = Scores(torch.tensor([[3, 1], [0, 4]]))
    lines = scores.table(["road", "sidewalk"]).splitlines()
    assert lines[2] == "| road     |  75.0 |  75.0 |"
    assert lines[3] == "| sidewalk |  80.0 | 100.0 |"
    assert lines[4] == "| mean     |  77.5 |  87.5 |"
    assert lines[-1] == "pixel accuracy 87.5"


@pytest.mark.parametrize("by_folder", [False, True])
def test_eval_agrees_with_the_files_of_predict(
    data_root: Path, finished_run: Path, tmp_path: Path, by_folder: bool
) -> None:
    checkpoint = str(finished_run / "best.safetensors")
    images = sorted((data_root / "images").iterdir())
    where = (
        {"images": "images", "labels": "labels", "root": str(data_root)}
        if by_folder
        else {"list": str(data_root / "train.txt")}
    )
    scores, taxonomy = evaluate_files(EvalConfig(checkpoint, workers=0, **where))
    predict(PredictConfig([str(i) for i in images], checkpoint, str(tmp_path)))
    pairs = [
        (
            np.array(Image.open(data_root / "labels" / image.name)),
            np.array(Image.open(tmp_path / f"{image.stem}_labels.png")),
        )
        for image in images
    ]
    expected = numpy_scores(pairs, 3)
    assert taxonomy.num_classes == 3
    np.testing.assert_allclose(scores.iou, expected["iou"])
    assert scores.pixel_accuracy == pytest.approx(expected["pixel_accuracy"])

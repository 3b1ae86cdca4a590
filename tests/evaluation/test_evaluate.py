"""Scores against numpy."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pspfast.cli import main
from pspfast.config import Config
from pspfast.data import ClassList, EvalTransform, SegmentationDataset, list_file_samples
from pspfast.evaluation import evaluate as evaluation
from pspfast.evaluation.evaluate import evaluate_files
from pspfast.evaluation.image_scores import ImageScores
from pspfast.evaluation.options import EvalConfig
from pspfast.evaluation.output import make_record, save_scores
from pspfast.model_files import build_model, load_model, save_weights
from pspfast.models.multi_scale import SlidingProbabilities
from pspfast.prediction.options import PredictConfig
from pspfast.prediction.predict import predict
from pspfast.scores import Scores, evaluate, make_confusion

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
    # semseg has a mean over all classes: hits / (union + 1e-10), hits / (labels + 1e-10).
    absent_as_0 = {name: np.nan_to_num(expected[name]).sum() / 5 for name in ("iou", "accuracy")}
    assert scores.summary() == pytest.approx(
        {
            "mIoU": np.nanmean(expected["iou"]),
            "mAcc": np.nanmean(expected["accuracy"]),
            "mIoU_absent_0": absent_as_0["iou"],
            "mAcc_absent_0": absent_as_0["accuracy"],
            "pixel_acc": expected["pixel_accuracy"],
        }
    )
    assert absent_as_0["iou"] < scores.mean_iou


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
    scores, class_list = evaluate_files(EvalConfig(checkpoint, workers=0, **where))
    predict(PredictConfig([str(i) for i in images], checkpoint, str(tmp_path)))
    pairs = [
        (
            np.array(Image.open(data_root / "labels" / image.name)),
            np.array(Image.open(tmp_path / f"{image.stem}_labels.png")),
        )
        for image in images
    ]
    expected = numpy_scores(pairs, 3)
    assert class_list.num_classes == 3
    np.testing.assert_allclose(scores.iou, expected["iou"])
    assert scores.pixel_accuracy == pytest.approx(expected["pixel_accuracy"])


def test_eval_of_a_published_data_set(data_root: Path, finished_run: Path, tmp_path: Path) -> None:
    for folder, target in (("images", "images"), ("labels", "annotations")):
        (tmp_path / target / "validation").mkdir(parents=True)
        for i in range(2):
            shutil.copy(data_root / folder / f"{i}.png", tmp_path / target / "validation")
    checkpoint = str(finished_run / "best.safetensors")
    by_source, by_list = (
        evaluate_files(EvalConfig(checkpoint, workers=0, **where))[0].confusion
        for where in (
            {"source": "ade20k", "root": str(tmp_path)},
            {"list": str(data_root / "val.txt")},
        )
    )
    assert by_source.tolist() == by_list.tolist()


@pytest.fixture
def undecided(config: Config, data_root: Path, tmp_path: Path) -> Path:
    """File of a model with random weights that sees every class in most images."""
    model = build_model(config, 3).eval()
    samples = list_file_samples(data_root / "val.txt")
    image, _ = SegmentationDataset(samples, EvalTransform())[0]
    with torch.no_grad():
        model.cls[-1].weight.normal_(std=3)
        model.cls[-1].bias -= model(image[None]).mean((0, 2, 3))
    path = tmp_path / "undecided.safetensors"
    save_weights(path, model.state_dict(), config, ClassList.generic(3), {})
    return path


def confusion_by_windows(checkpoint: Path, data_root: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """By windows of the size of the training crops, at two scales and mirrored; and without."""
    model = load_model(checkpoint).model
    windows = SlidingProbabilities(
        model=model, scales=(0.75, 1.25), flip=True, crop=(33, 41), stride=(22, 28), window_batch=8
    )
    samples = list_file_samples(data_root / "val.txt")
    batches = [[x[None] for x in item] for item in SegmentationDataset(samples, EvalTransform())]
    by_windows, whole = (
        evaluate(predictor, batches, make_confusion(3, 255, CPU), CPU).confusion
        for predictor in (windows, model)
    )
    return by_windows, whole


def test_output(
    data_root: Path, undecided: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "scores"
    args = ["--checkpoint", str(undecided), "--output", str(folder)]
    args += ["--list", str(data_root / "val.txt"), "--workers", "0", "--protocol", "semseg"]
    main(["eval", *args, "--scales=[0.75,1.25]", "--flip", "true"])
    assert {path.name for path in folder.iterdir()} == {
        "scores.json",
        "confusion.png",
        "report.html",
    }
    saved = json.loads((folder / "scores.json").read_text())
    counts, whole = confusion_by_windows(undecided, data_root)
    # The model's weights were folded, which may move a pixel between two classes.
    assert (torch.tensor(saved["confusion"]) - counts).abs().sum() <= 4
    assert (whole - counts).abs().sum() > 40
    scores = Scores(torch.tensor(saved["confusion"]))
    assert saved["scores"] == pytest.approx(scores.summary())
    assert scores.table(list(saved["classes"])) in capsys.readouterr().out
    labels = [np.array(Image.open(data_root / "labels" / f"{i}.png")) for i in range(2)]
    pixels = sum(np.bincount(label[label != 255], minlength=3) for label in labels)
    assert [one["pixels"] for one in saved["classes"].values()] == pixels.tolist()
    assert saved["options"]["scales"] == [0.75, 1.25]
    assert (saved["options"]["protocol"], saved["options"]["flip"]) == ("semseg", True)
    assert saved["versions"]["torch"] == torch.__version__
    with Image.open(folder / "confusion.png") as picture:
        assert min(picture.size) > 200


def test_absent_classes_are_null(tmp_path: Path) -> None:
    scores = Scores(torch.tensor([[3, 1, 0], [0, 0, 0], [0, 0, 0]]))
    classes, nothing = ClassList.generic(3), ImageScores([], {})
    record = make_record(scores, classes, EvalConfig("c", list="l"), CPU, [], nothing)
    save_scores(tmp_path, record, scores.picture(classes.names), [], classes)
    saved = json.loads((tmp_path / "scores.json").read_text(), parse_constant=pytest.fail)
    assert [one["IoU"] for one in saved["classes"].values()] == [0.75, 0, None]
    assert [one["acc"] for one in saved["classes"].values()] == [0.75, None, None]


def test_output_that_is_a_file_is_named_first(
    data_root: Path, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pspfast.evaluation.evaluate.evaluate", pytest.fail)
    (tmp_path / "file").touch()
    options = EvalConfig(
        str(finished_run / "best.safetensors"),
        list=str(data_root / "val.txt"),
        output=str(tmp_path / "file"),
    )
    with pytest.raises(FileExistsError, match="file"):
        evaluate_files(options)


@pytest.mark.parametrize("workers", [0, 1])
def test_file_that_breaks_after_the_check_is_named(
    data_root: Path,
    finished_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    workers: int,
) -> None:
    root = shutil.copytree(data_root, tmp_path / "data")
    check = evaluation.find_samples

    def breaking(*args: Any) -> list[Any]:
        samples = check(*args)
        (root / "images/1.png").write_bytes(b"broken")
        return samples

    monkeypatch.setattr(evaluation, "find_samples", breaking)
    args = ["--checkpoint", str(finished_run / "best.safetensors"), "--workers", str(workers)]
    with pytest.raises(SystemExit) as status:
        main(["eval", *args, "--list", str(root / "val.txt")])
    assert status.value.code
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("pspfast: error: eval: ")
    assert "1.png" in message

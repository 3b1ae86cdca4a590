"""The page of ``pspfast eval --output``, read without a browser and in one."""

import base64
import io
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import watched_page
from PIL import Image
from processes import run_processes
from scored_images import score_images

from pspfast.cli import main
from pspfast.data import ClassList
from pspfast.evaluation.image_scores import SHOWN, ImageScorer, ImageScores
from pspfast.evaluation.options import EvalConfig
from pspfast.evaluation.output import make_record, save_scores
from pspfast.scores import Scores

VOID = {"meta", "link", "img", "br"}
WEIRD = ("<b>road & rail</b>", 'say "hi"', "it's")


class Page(HTMLParser):
    """The elements of a page: whether they nest, numbers, headings and pictures."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.numbers: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.images: list[dict[str, str | None]] = []
        self.scopes: list[str | None] = []
        self.links: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append(tag)
        self.links += [str(values[name]) for name in ("href", "src") if name in values]
        if tag == "img":
            self.images.append(values)
        if tag == "data":
            self.numbers.append(str(values["value"]))
        if tag == "th":
            self.scopes.append(values.get("scope"))
        if tag not in VOID:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts[self.open[-1]][-1] += data


@pytest.fixture(scope="module")
def report(
    data_root: Path, finished_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Path]:
    """scores.json and the page, of six images."""
    folder = tmp_path_factory.mktemp("report")
    args = ["--checkpoint", str(finished_run / "best.safetensors"), "--workers", "0"]
    main(["eval", *args, "--list", str(data_root / "train.txt"), "--output", str(folder)])
    return json.loads((folder / "scores.json").read_text()), folder / "report.html"


def test_numbers_are_those_of_the_json(report: tuple[dict[str, Any], Path]) -> None:
    saved, path = report
    page = Page(path.read_text())
    expected = [saved["scores"][n] for n in ("mIoU", "mAcc", "pixel_acc")]
    expected += [saved["scores"][n] for n in ("mIoU_absent_0", "mAcc_absent_0")]
    for one in saved["classes"].values():
        expected += [v for v in (one["IoU"], one["acc"], one["pixels"]) if v is not None]
    expected += [count for row in saved["confusion"] for count in row]
    ranked = sorted(saved["images"], key=lambda one: one["mIoU"])
    for one in [*ranked[: -SHOWN - 1 : -1], *ranked[: 6 - SHOWN]]:
        expected += [one["mIoU"], one["pixel_acc"]]
    assert [float(number) for number in page.numbers] == expected
    shown = [100 * value for value in expected[:5]]
    assert page.texts["data"][:5] == [f"{value:.1f}" for value in shown]


def test_scores_of_images_against_numpy(
    report: tuple[dict[str, Any], Path], data_root: Path, finished_run: Path, tmp_path: Path
) -> None:
    names = sorted(str(path) for path in (data_root / "images").iterdir())
    args = ["--checkpoint", str(finished_run / "best.safetensors"), "--output", str(tmp_path)]
    main(["predict", *names, *args])
    assert [one["image"] for one in report[0]["images"]] == names
    for one in report[0]["images"]:
        name = Path(one["image"]).name
        label = np.array(Image.open(data_root / "labels" / name))
        predicted = np.array(Image.open(tmp_path / f"{Path(name).stem}_labels.png"))[label != 255]
        label = label[label != 255]
        ious = [
            np.sum((label == c) & (predicted == c)) / np.sum((label == c) | (predicted == c))
            for c in np.union1d(label, predicted)
        ]
        assert one["mIoU"] == pytest.approx(np.mean(ious))
        assert one["pixel_acc"] == pytest.approx(np.mean(label == predicted))


def test_page_needs_nothing_else(report: tuple[dict[str, Any], Path]) -> None:
    text = report[1].read_text()
    page = Page(text)
    assert page.links
    assert all(link.startswith("data:") for link in page.links)
    assert "script" not in page.tags
    assert "url(" not in text
    assert "@import" not in text
    assert "http" not in text
    assert all(scope in ("col", "row") for scope in page.scopes)
    assert len(page.images) == 3 * 6
    for image in page.images:
        assert image["alt"]
        picture = base64.b64decode(str(image["src"]).split(",")[1])
        assert min(Image.open(io.BytesIO(picture)).size) > 30


def page_of(scores: Scores, class_list: ClassList, folder: Path) -> Page:
    options = EvalConfig("<i>&.safetensors", list="l")
    nothing = ImageScores([], {})
    record = make_record(scores, class_list, options, torch.device("cpu"), [], nothing)
    save_scores(folder, record, scores.picture(class_list.names), [], class_list)
    return Page((folder / "report.html").read_text())


def test_names_are_escaped_and_absent_classes_have_no_number(tmp_path: Path) -> None:
    scores = Scores(torch.tensor([[3, 1, 0], [0, 0, 0], [0, 0, 0]]))
    page = page_of(scores, ClassList(WEIRD, ((0, 0, 0),) * 3), tmp_path)
    assert page.texts["th"][:7] == ["class", "IoU", "accuracy", "pixels", *WEIRD]
    assert page.texts["title"] == ["Evaluation of <i>&.safetensors"]
    assert not {"b", "i"} & set(page.tags)
    assert page.texts["td"][6:8] == ["–", "–"]


def test_large_matrix_is_a_picture(tmp_path: Path) -> None:
    page = page_of(Scores(torch.eye(40, dtype=torch.long)), ClassList.generic(40), tmp_path)
    assert [image["alt"] for image in page.images] == ["Confusion matrix, labels in rows"]
    assert len(page.numbers) == 5 + 3 * 40


def test_best_and_worst_of_many() -> None:
    """Of images with 0 to 9 of ten pixels right, and one that is ignored."""
    order = [3, 0, 9, 5, 1, 8, 2, 7, 4, 6]
    scorer = ImageScorer([*order, 10], 2, 255)
    for right in order:
        predicted = (torch.arange(10) >= right).long().view(1, 1, 10)
        scorer(predicted, torch.zeros(1, 1, 10, dtype=torch.long))
    scorer(torch.zeros(1, 1, 10, dtype=torch.long), torch.full((1, 1, 10), 255))
    images = scorer.gather()
    assert [score.sample for score in images.best] == [9, 8, 7, 6]
    assert [score.sample for score in images.worst] == [0, 1, 2, 3]
    assert images.best[0].pixel_accuracy == 0.9
    # Class 1 occurs in the prediction only.
    assert images.best[0].mean_iou == pytest.approx(0.45)
    assert sorted(images.predicted) == [0, 1, 2, 3, 6, 7, 8, 9]
    assert (images.predicted[3] == 0).sum() == 3


def test_processes_score_their_own_images() -> None:
    alone = score_images(0, 1)
    assert [score.pixel_accuracy for score in alone.scores] == [i / 10 for i in range(10)]
    for images in run_processes(2, score_images, 2):
        assert images.scores == alone.scores
        assert sorted(images.predicted) == sorted(alone.predicted)


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_in_a_browser(report: tuple[dict[str, Any], Path], width: int, dark: bool) -> None:
    with watched_page(width, dark=dark) as page:
        page.goto(report[1].as_uri())
        assert page.locator("h1").inner_text() == "Evaluation"
        assert page.locator(".example img").count() == 18
        loaded = "[...document.images].every(image => image.complete && image.naturalWidth)"
        assert page.evaluate(loaded)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert ground == ("rgb(20, 23, 27)" if dark else "rgb(255, 255, 255)")

"""``pspfast app`` as a process of its own, in a browser."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import PATIENCE, watched_page
from PIL import Image

from pspfast.data import ClassList, overlay
from pspfast.model_files import load_model

pytest.importorskip("gradio")


@contextmanager
def app(*args: str) -> Iterator[str]:
    """The address of the page; Ctrl-C must end it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pspfast", "app", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        # Training prints its epochs later; the address is the first line.
        line = process.stdout.readline()
        assert line.startswith("the page is at "), line + process.stderr.read()
        yield line.split()[4].rstrip(";")
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=PATIENCE)
        assert process.returncode == 130, told
        assert "Traceback" not in told
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def address(finished_run: Path) -> Iterator[str]:
    with app("--checkpoint", str(finished_run / "best.safetensors")) as url:
        yield url


def download(page: Any, button: str) -> Image.Image:
    with page.expect_download() as told:
        page.locator(button).click()
    return Image.open(told.value.path())


def shown_source(page: Any) -> str:
    return str(page.locator("#overlay img").get_attribute("src"))


def wait_for_another(page: Any, source: str) -> str:
    page.wait_for_function(
        "old => document.querySelector('#overlay img')?.getAttribute('src') !== old",
        arg=source,
    )
    return shown_source(page)


def test_image_overlay_and_files(address: str, data_root: Path, finished_run: Path) -> None:
    source = data_root / "images" / "1.png"
    pixels = np.array(Image.open(source))
    trained = load_model(finished_run / "best.safetensors")
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    normal = (image - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
        [0.229, 0.224, 0.225]
    ).view(3, 1, 1)
    expected = trained.model.predict(normal)[0].numpy()
    classes: ClassList = trained.class_list
    with watched_page() as page:
        page.goto(address)
        page.locator("#upload input[type=file]").set_input_files(str(source))
        page.locator("#overlay img").wait_for()
        first = shown_source(page)
        # Folding moves a pixel between two classes at most here and there.
        labels = np.array(download(page, "#labels-file"))
        assert np.mean(labels != expected) < 0.01
        np.testing.assert_array_equal(
            np.array(download(page, "#overlay-file")), overlay(pixels, labels, classes)
        )
        counts = np.bincount(labels.ravel(), minlength=3)
        present = [i for i in np.argsort(-counts, kind="stable") if counts[i]]
        names = [classes.names[i] for i in present]
        assert page.locator(".legend li").all_inner_texts() == names
        rows = page.locator(".shares tbody tr")
        assert [row.split() for row in rows.all_inner_texts()] == [
            [classes.names[i], f"{100 * counts[i] / counts.sum():.1f}", f"{counts[i]:,}"]
            for i in present
        ]
        assert page.locator(".strip span").count() == len(present)
        assert "57 × 33 pixels in" in page.locator(".note").first.inner_text()

        page.locator("#classes label", has_text=names[0]).locator("input").uncheck()
        second = wait_for_another(page, first)
        hidden = np.where(labels == present[0], 255, labels)
        np.testing.assert_array_equal(
            np.array(download(page, "#overlay-file")), overlay(pixels, hidden, classes)
        )
        page.get_by_label("Opacity").first.fill("0.9")
        page.get_by_label("Opacity").first.press("Enter")
        wait_for_another(page, second)
        np.testing.assert_array_equal(
            np.array(download(page, "#overlay-file")), overlay(pixels, hidden, classes, 0.9)
        )


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_scene_and_bad_files(address: str, tmp_path: Path, width: int, dark: bool) -> None:
    (tmp_path / "text.png").write_text("no image")
    Image.new("F", (40, 40)).save(tmp_path / "floats.tiff")
    with watched_page(width, dark=dark) as page:
        page.goto(address)
        page.locator("#scenes img").nth(5).click()
        page.locator("#overlay img").wait_for()
        assert "scene-5.png: 161 × 129" in page.locator(".note").first.inner_text()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("document.body.classList.contains('dark')") == dark
        upload = page.locator("#upload input[type=file]")
        upload.set_input_files(str(tmp_path / "text.png"))
        problem = page.locator(".problem")
        problem.wait_for()
        assert problem.inner_text() == "text.png: cannot identify image file 'text.png'"
        assert not page.locator("#overlay img").is_visible()


def test_page_trains_the_model_that_it_lacks(tmp_path: Path) -> None:
    # More epochs than it can finish before anybody looks.
    arguments = ("--demo", str(tmp_path / "demo"), "--epochs", "1000")
    with app(*arguments) as address, watched_page() as page:
        page.goto(address)
        page.get_by_role("button", name="Train the demo's model").click()
        page.get_by_text("of 1000").wait_for()
        assert page.locator("progress").get_attribute("max") == "1"
    # Where Ctrl-C stopped it, it can go on.
    assert list((tmp_path / "demo/run").glob("checkpoint-*.safetensors"))

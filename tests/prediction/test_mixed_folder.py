"""A folder of good, broken and foreign files: every good one is done, every other one named."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pspfast.config import Config
from pspfast.data import ClassList
from pspfast.model_files import build_model, save_weights
from pspfast.prediction.inputs import find_inputs
from pspfast.prediction.options import PredictConfig
from pspfast.prediction.predict import predict


@pytest.fixture
def checkpoint(config: Config, tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_weights(path, build_model(config, 3).state_dict(), config, ClassList.generic(3), {})
    return path


def picture(path: Path, size: tuple[int, int] = (16, 24), **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


def run(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pspfast", "predict", *args]
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, errors="surrogateescape", timeout=300
    )


def test_two_hundred_files(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    odd = ["with space.png", "ünï.png", "a%sb.png", "-dash.png", "tab\tname.png", "UPPER.PNG"]
    odd += [os.fsdecode(b"latin\xdf.png"), "dots.in.name.png", "日本.jpg", "new\nline.png"]
    good = [picture(folder / f"{i:03d}.png") for i in range(140)]
    good += [picture(folder / name, format="PNG") for name in odd]
    good += [picture(folder / "tiny.png", (1, 1)), picture(folder / "sub/deep/other.jpg")]
    broken = []
    for i in range(20):
        broken.append(folder / f"cut{i}.png")
        broken[-1].write_bytes(good[0].read_bytes()[: 40 + 40 * i])
    broken.append(folder / "text.jpg")
    broken[-1].write_text("no picture")
    broken.append(folder / "empty.tif")
    broken[-1].touch()
    # Its outputs' names would be longer than a file's may be.
    broken.append(picture(folder / f"{'long' * 62}.png"))
    foreign = [
        folder / name for name in ("readme.pdf", "x.txt", ".hidden.png", "data.npy", "m.mp4")
    ]
    for path in foreign:
        shutil.copy(good[0], path)
    os.mkfifo(folder / "pipe.png")
    (folder / "broken_link.png").symlink_to(folder / "nowhere.png")
    (folder / "loop").symlink_to(folder)
    foreign += [folder / name for name in ("pipe.png", "broken_link.png", "loop")]
    for i in range(200 - len(good) - len(broken) - len(foreign)):
        foreign.append(folder / f"notes{i}.md")
        foreign[-1].touch()

    done = run(str(folder), "--checkpoint", str(checkpoint), "--output", "out", cwd=tmp_path)
    assert done.returncode == 1, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    for path in good:
        stem = os.path.splitext(path.name)[0]
        assert (tmp_path / "out" / f"{stem}_labels.png").is_file(), path
    told = done.stderr
    for path in (*broken, *foreign):
        assert path.name in told, path
    assert not list((tmp_path / "out").rglob("*.tmp"))


@pytest.mark.parametrize("name", ["pipe.png", "loop.png", "/dev/null"])
def test_what_is_no_file_fails_by_name(checkpoint: Path, tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    good = picture(tmp_path / "good.png")
    path = str(tmp_path / name)
    predictions = predict(
        PredictConfig([path, str(good)], str(checkpoint), output=str(tmp_path / "out"))
    )
    (failure,) = predictions.failures
    assert str(failure).startswith(f"{path}: expected a file, got a pipe, device or broken link")
    assert (tmp_path / "out/good_labels.png").is_file()


def test_outputs_beside_the_images(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    for name in ("a.png", "b.png"):
        picture(folder / name)
    options = PredictConfig([str(folder)], str(checkpoint), output=str(folder))
    names = [predict(options).written for _ in range(2)]
    # The second run finds what the first one wrote, and takes none of it.
    assert names[0] == names[1]
    assert sorted(f.name for f in folder.iterdir() if "labels" in f.name) == [
        "a_labels.png",
        "b_labels.png",
    ]
    found = find_inputs([str(folder)], tmp_path)
    assert len(found.inputs) == 8


def test_output_above_the_images(checkpoint: Path, tmp_path: Path) -> None:
    picture(tmp_path / "photos/a.png")
    for inputs in ("photos", "photos/*.png"):
        options = PredictConfig(
            [str(tmp_path / inputs)], str(checkpoint), output=str(tmp_path), outputs=("labels",)
        )
        assert predict(options).written == [tmp_path / "a_labels.png"]


def test_an_input_is_never_written_over(checkpoint: Path, tmp_path: Path) -> None:
    images = [picture(tmp_path / "a.png"), picture(tmp_path / "a_labels.png")]
    before = images[1].read_bytes()
    options = PredictConfig([*map(str, images)], str(checkpoint), output=str(tmp_path))
    with pytest.raises(
        ValueError, match=r"^output: .*a\.png would be written over .*a_labels\.png"
    ):
        predict(options)
    assert images[1].read_bytes() == before
    assert not (tmp_path / "a_color.png").exists()


def test_image_called_dots(checkpoint: Path, tmp_path: Path) -> None:
    image = picture(tmp_path / "..jpg", format="JPEG")
    options = PredictConfig([str(image)], str(checkpoint), output=str(tmp_path / "out"))
    written = predict(options).written
    assert {path.parent for path in written} == {tmp_path / "out"}
    assert all(path.is_file() for path in written)


def test_patterns_tell_what_they_leave_out(checkpoint: Path, tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "notes.txt").touch()
    found = find_inputs([f"{tmp_path}/*"], tmp_path / "out")
    assert [i.path.name for i in found.inputs] == ["a.png"]
    assert "notes.txt" in str(found.left_out) and "model.safetensors" in str(found.left_out)
    with pytest.raises(ValueError, match="no images; left out: 1 not images by their names"):
        find_inputs([f"{tmp_path}/*.txt"], tmp_path / "out")

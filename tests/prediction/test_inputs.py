"""Which files ``pspfast predict`` takes, what it calls their outputs, and its batches."""

import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from pspfast.prediction.inputs import (
    Input,
    Picture,
    batches_of_one_size,
    find_inputs,
    read_pictures,
)


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with empty files."""
    names = ["b.JPG", "sub/a.png", "sub/deep/c.tif", "notes.txt", ".hidden.png", ".cache/d.png"]
    for name in [*names, "drive.mp4", "[1].png", "empty/notes.txt"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def found(*names: str, output: str = "out") -> dict[str, str]:
    return {str(i.path): str(i.name) for i in find_inputs(names, Path(output)).inputs}


def test_folders(tree: Path) -> None:
    expected = {"[1].png": "[1]", "b.JPG": "b", "sub/a.png": "a", "sub/deep/c.tif": "c"}
    assert found(".") == expected
    assert found(str(tree)) == {str(tree / path): name for path, name in expected.items()}


def test_patterns(tree: Path) -> None:
    assert found("sub/**/*.*") == {"sub/a.png": "a", "sub/deep/c.tif": "c"}
    assert found("s*/?.png") == {"sub/a.png": "a"}
    # A file of that name is meant before the pattern.
    assert found("[1].png") == {"[1].png": "[1]"}


def test_named_files_are_taken_whatever_they_are(tree: Path) -> None:
    assert list(found("notes.txt", ".hidden.png", "drive.mp4")) == [
        "notes.txt",
        ".hidden.png",
        "drive.mp4",
    ]
    assert [i.is_video for i in find_inputs(["b.JPG", "drive.mp4"], Path("out")).inputs] == [
        False,
        True,
    ]


def test_each_file_once(tree: Path) -> None:
    assert list(found("sub/deep/c.tif", "sub", str(tree / "sub/a.png"), "sub/../b.JPG")) == [
        "sub/deep/c.tif",
        str(tree / "sub/a.png"),
        "sub/../b.JPG",
    ]


def test_earlier_outputs_are_no_inputs(tree: Path) -> None:
    assert "sub/a.png" not in found(".", output="sub")
    assert "sub/a.png" not in found("*/a.png", "b.JPG", output="sub")
    assert "sub/a.png" in found("sub/a.png", output="sub")


def test_names_of_one_stem(tree: Path) -> None:
    (tree / "sub/deep/a.png").touch()
    assert found("sub/a.png", "sub/deep/a.png", "sub/deep/c.tif") == {
        "sub/a.png": "a",
        "sub/deep/a.png": "deep/a",
        "sub/deep/c.tif": "deep/c",
    }
    (tree / "sub/a.jpg").touch()
    assert found("sub/a.png", "sub/a.jpg", "b.JPG") == {
        "sub/a.png": "sub/a.png",
        "sub/a.jpg": "sub/a.jpg",
        "b.JPG": "b.JPG",
    }


def test_links_keep_their_names(tree: Path) -> None:
    os.symlink(tree / "b.JPG", tree / "sub" / "link.jpg")
    assert found("sub/link.jpg", "b.JPG") == {"sub/link.jpg": "link", "b.JPG": "b"}


def test_what_matches_nothing(tree: Path) -> None:
    for name in ("none.png", "none/*.png"):
        with pytest.raises(FileNotFoundError, match=name.replace("*", r"\*")):
            find_inputs(["b.JPG", name], Path("out"))
    with pytest.raises(ValueError, match="empty: no images"):
        find_inputs(["empty"], Path("out"))


def test_reading_goes_on_after_a_bad_file(tmp_path: Path) -> None:
    Image.new("RGB", (5, 3), (1, 2, 3)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_text("no image")
    inputs = [Input(tmp_path / name, name) for name in ("gone.png", "bad.png", "good.png")]
    failures: list[Exception] = []
    (picture,) = read_pictures(inputs, failures)
    assert picture.image[:, 2, 4].tolist() == [1, 2, 3]
    assert picture.pixels.shape == (3, 5, 3)
    assert ["gone.png" in str(failures[0]), "bad.png" in str(failures[1])] == [True, True]


def test_batches() -> None:
    """Of width 1 and 2 as they come; then single sizes, which must not pile up."""
    widths = [1, 2, 1, 2, 2, 1, 1, *range(10, 30)]
    read = 0

    def pictures():
        nonlocal read
        for number, width in enumerate(widths):
            read += 1
            yield Picture(Input(Path(str(number)), ""), torch.zeros(3, 4, width))

    batches, most_held, given = [], 0, 0
    for batch in batches_of_one_size(pictures(), 3):
        most_held = max(most_held, read - given)
        given += len(batch)
        batches.append([int(str(picture.source.path)) for picture in batch])
    assert batches[:3] == [[1, 3, 4], [0, 2, 5], [6]]
    assert sorted(number for batch in batches for number in batch) == [*range(len(widths))]
    assert most_held == 12
    assert [len(b) for b in batches_of_one_size(pictures(), 1)] == [1] * len(widths)

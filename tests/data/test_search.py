"""One rule for which files of a folder are images; what is left out is told."""

import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pspfast.data import folder_samples, list_file_samples
from pspfast.data.search import LeftOut, find_images


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(root / name, format="PNG")


def found(root: Path, left_out: LeftOut | None = None) -> list[str]:
    images = find_images(root, LeftOut() if left_out is None else left_out)
    return [str(path.relative_to(root)) for path in images]


def test_hidden_files_documents_and_pipes_are_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b/c.JPG", ".hidden.png", ".thumbnails/d.png", "readme.pdf", "x.txt")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "broken.png").symlink_to(tmp_path / "none.png")
    left_out = LeftOut()
    assert found(tmp_path, left_out) == ["a.png", "b/c.JPG"]
    told = str(left_out)
    assert "2 hidden" in told and "2 not images by their names" in told
    assert "2 broken links, pipes or devices" in told
    for name in (".hidden.png", ".thumbnails", "readme.pdf", "x.txt", "pipe.png", "broken.png"):
        assert name in told


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    touch(tmp_path, "in/a.png", "elsewhere/b.png")
    (tmp_path / "in/other").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in/self").symlink_to(tmp_path / "in")
    left_out = LeftOut()
    assert found(tmp_path / "in", left_out) == ["a.png", "other/b.png"]
    assert "1 loops of links" in str(left_out)


def test_unicode_forms_match(tmp_path: Path) -> None:
    name = "Straße Müller.png"
    composed, decomposed = (unicodedata.normalize(form, name) for form in ("NFC", "NFD"))
    touch(tmp_path, f"images/{composed}", f"labels/{decomposed}")
    ((image, label),) = folder_samples(tmp_path / "images", tmp_path / "labels")
    assert (image.name, label.name) == (composed, decomposed)
    touch(tmp_path, f"images/{decomposed}")
    with pytest.raises(ValueError, match="have the same name"):
        folder_samples(tmp_path / "images", tmp_path / "labels")


def test_left_out_samples_are_told(tmp_path: Path) -> None:
    touch(tmp_path, "i/a.png", "i/.ipynb_checkpoints/a-checkpoint.png", "l/a.png", "l/b.png")
    with pytest.warns(UserWarning) as warned:
        assert len(folder_samples(tmp_path / "i", tmp_path / "l")) == 1
    texts = [str(warning.message) for warning in warned]
    assert any("left out 1 hidden" in text and "ipynb" in text for text in texts)
    assert any(
        "left out 1 label maps without an image" in text and "b.png" in text for text in texts
    )


TEXT = "images/a.png labels/a.png\nimages/b.png labels/b.png\n"


@pytest.mark.parametrize(
    "data",
    [
        TEXT.encode(),
        b"\xef\xbb\xbf" + TEXT.encode(),
        TEXT.encode("utf-16"),
        TEXT.encode("utf-32"),
        TEXT.replace("\n", "\r\n").encode(),
        TEXT.replace("\n", "\r").encode(),
        TEXT.replace("/", "\\").encode(),
        TEXT.replace(" ", " \t ").encode(),
    ],
    ids=["plain", "mark", "utf-16", "utf-32", "crlf", "cr", "backslashes", "blanks"],
)
def test_lists_from_anywhere(tmp_path: Path, data: bytes) -> None:
    touch(tmp_path, "images/a.png", "labels/a.png", "images/b.png", "labels/b.png")
    (tmp_path / "list.txt").write_bytes(data)
    assert list_file_samples(tmp_path / "list.txt") == [
        (tmp_path / f"images/{stem}.png", tmp_path / f"labels/{stem}.png") for stem in "ab"
    ]


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"stra\xdfe.png")
    touch(tmp_path, name)
    (tmp_path / "list.txt").write_bytes(b"stra\xdfe.png\n")
    assert list_file_samples(tmp_path / "list.txt") == [(tmp_path / name, None)]
    (tmp_path / "list.txt").write_bytes(b"other\xdf.png\n")
    with pytest.raises(ValueError, match=r"list\.txt, line 1: not a text file in UTF-8"):
        list_file_samples(tmp_path / "list.txt")


def test_no_break_spaces_are_parts_of_names(tmp_path: Path) -> None:
    touch(tmp_path, "a\u00a0b.png")
    (tmp_path / "list.txt").write_text("a\u00a0b.png\n", encoding="utf-8")
    assert list_file_samples(tmp_path / "list.txt") == [(tmp_path / "a\u00a0b.png", None)]


def test_lists_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(TEXT.encode("utf-16-le"))
    with pytest.raises(ValueError, match=r"list\.txt: not a text file, or one in UTF-16 without"):
        list_file_samples(tmp_path / "list.txt")
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(ValueError, match=r"pipe\.txt: expected a file, got a folder, pipe"):
        list_file_samples(tmp_path / "pipe.txt")

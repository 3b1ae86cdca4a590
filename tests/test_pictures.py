"""The pictures of docs/how-it-works.md are those that the operators draw now."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from tools.pictures.__main__ import PICTURES
from tools.pictures.drawing import save

IMAGES = Path(__file__).parents[1] / "docs" / "images"
# Counted in half a minute, by what test_footprint.py tests.
SLOW = {"memory"}


def texts(path: Path) -> list[str | None]:
    """Titles and numbers; shapes and colours differ with the version of matplotlib."""
    return [e.text for e in ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text")]


@pytest.mark.parametrize("name", sorted(PICTURES.keys() - SLOW))
def test_is_current(name: str, tmp_path: Path) -> None:
    save(PICTURES[name](), tmp_path / "drawn.svg")
    drawn = texts(tmp_path / "drawn.svg")
    assert drawn and drawn == texts(IMAGES / f"how-{name}.svg")


def test_all_are_there() -> None:
    assert {path.stem for path in IMAGES.glob("how-*")} == {f"how-{name}" for name in PICTURES}

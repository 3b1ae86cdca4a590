"""Which files are images: one rule for folders, patterns and names, and what it leaves out."""

from __future__ import annotations

import os
import stat
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

# Pictures of the formats that Pillow decodes by itself, in a folder; a file that is named is tried
# whatever it is called.
IMAGE_SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("apng", "avif", "bmp", "dib", "gif", "j2k", "jfif", "jp2", "jpe", "jpeg", "jpg", "jpx"),
        *("pbm", "pcx", "pgm", "png", "pnm", "ppm", "qoi", "sgi", "tga", "tif", "tiff", "webp"),
    )
)


@dataclass
class LeftOut:
    """Files and folders that were not taken, by the reason; nothing is left out silently."""

    examples: dict[str, list[Path]] = field(default_factory=lambda: defaultdict(list))

    def add(self, path: Path, reason: str) -> None:
        self.examples[reason].append(path)

    def __str__(self) -> str:
        """One line, empty where all were taken."""
        parts = [
            f"{len(paths)} {reason} ({listed(paths)})" for reason, paths in self.examples.items()
        ]
        return ", ".join(parts)


def find_images(folder: Path, left_out: LeftOut) -> Iterator[Path]:
    """The images in a folder and its subfolders, sorted by name.

    An image is a regular file of one of ``IMAGE_SUFFIXES``, in either case. Hidden files and
    folders, whose name begins with a dot, are left out; links are followed, and a folder that
    contains itself by a link is searched once.

    Args:
        folder: an existing folder.
        left_out: gets what was not taken.

    Raises:
        OSError: the folder cannot be read.
    """
    yield from _search(folder, left_out, ancestors=frozenset())


def _search(
    folder: Path, left_out: LeftOut, ancestors: frozenset[tuple[int, int]]
) -> Iterator[Path]:
    status = folder.stat()
    identity = status.st_dev, status.st_ino
    if identity in ancestors:
        left_out.add(folder, "loops of links")
        return
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            left_out.add(path, "hidden")
        elif path.is_dir():
            try:
                yield from _search(path, left_out, ancestors | {identity})
            except PermissionError:
                left_out.add(path, "folders that cannot be read")
        elif path.suffix.lower() not in IMAGE_SUFFIXES:
            left_out.add(path, "not images by their names")
        elif not is_regular(path):
            left_out.add(path, "broken links, pipes or devices")
        else:
            yield path


def is_regular(path: Path) -> bool:
    """Whether it is a file with an end, not a folder, pipe, device or broken link."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return False


def by_stem(folder: Path, left_out: LeftOut) -> dict[Path, Path]:
    """The images below a folder by their paths in it, without suffixes and in Unicode's composed
    form: one system writes u and a diaeresis where another writes u-umlaut.

    Raises:
        ValueError: two files differ by their suffix, or by the form of their letters, only.
    """
    found: dict[Path, Path] = {}
    for path in find_images(folder, left_out):
        stem = Path(unicodedata.normalize("NFC", str(path.relative_to(folder).with_suffix(""))))
        if stem in found:
            raise ValueError(f"{path} and {found[stem]} have the same name; which one is meant?")
        found[stem] = path
    return found


def listed(paths: Iterable[object], most: int = 100) -> str:
    """Names for a message, the first of many."""
    names = [str(path) for path in paths]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more

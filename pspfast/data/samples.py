"""Pairs of image and label files, from list files and from folders."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

from pspfast.data.search import LeftOut, by_stem, listed
from pspfast.files import read_lines

Sample = tuple[Path, Path | None]


def list_file_samples(list_file: str | Path, root: str | Path | None = None) -> list[Sample]:
    """Samples named by a text file, one "image label" line for each.

    Args:
        list_file: lines of two paths, or of one where there are no labels. Blank lines are skipped.
            Text from Windows is taken too: UTF-16, byte order marks, CR LF, and backslashes where
            they lead to a file.
        root: what the paths are relative to; `None` is the list file's folder.

    Returns:
        (image, label) for each line; label is `None` where the line names none.

    Raises:
        FileNotFoundError: there is no such list file.
        ValueError: it is empty or no text, or a line has more than two columns or not as many as
            the others.
    """
    list_file = Path(list_file)
    root = list_file.parent if root is None else Path(root)
    samples: list[Sample] = []
    columns = 0
    for number, line in enumerate(read_lines(list_file, "list of images"), start=1):
        # Other blanks, a no-break space for one, are parts of names.
        names = re.split(r"[ \t]+", line.strip(" \t")) if line.strip(" \t") else []
        if not names:
            continue
        columns = columns or len(names)
        if len(names) > 2 or len(names) != columns:
            raise ValueError(
                f"{list_file}, line {number}: expected {min(columns, 2)} paths without spaces "
                f"in them, got {line.strip()!r}"
            )
        paths = [_path(root, name) for name in names]
        # Bytes that are no UTF-8 may be a name's.
        is_text = line.isascii() or line.encode(errors="replace").decode() == line
        if not is_text and not all(path.exists() for path in paths):
            raise ValueError(
                f"{list_file}, line {number}: not a text file in UTF-8, so no list of images"
            )
        samples.append((paths[0], paths[1] if len(paths) == 2 else None))
    if not samples:
        raise ValueError(f"{list_file}: the list is empty")
    return samples


def _path(root: Path, name: str) -> Path:
    path = root / name
    if "\\" in name and not path.exists():
        windows_path = root / name.replace("\\", "/")
        if windows_path.exists():
            return windows_path
    return path


def folder_samples(images_dir: str | Path, labels_dir: str | Path) -> list[Sample]:
    """Samples of two folders: an image and the label map of the same name up to the suffix.

    Subfolders are searched too, and must have the same names in both. What is no image by the rule
    of `find_images`, and label maps without an image, are left out with a warning that counts them.

    Returns:
        (image, label), sorted by name.

    Raises:
        FileNotFoundError: a folder is missing, or an image has no label map.
        ValueError: there is no image, or two files differ by their suffix only.
    """
    images, labels = _images_by_stem(Path(images_dir)), _images_by_stem(Path(labels_dir))
    if not images:
        raise ValueError(f"{images_dir}: no images in this folder")
    alone = [path for stem, path in images.items() if stem not in labels]
    if alone:
        raise FileNotFoundError(
            f"{labels_dir}: no label map for {len(alone)} of {len(images)} images: "
            f"{listed(alone, 10)}"
        )
    unused = [path for stem, path in labels.items() if stem not in images]
    if unused:
        warnings.warn(
            f"{labels_dir}: left out {len(unused)} label maps without an image: "
            f"{listed(unused, 10)}",
            stacklevel=2,
        )
    return [(path, labels[stem]) for stem, path in images.items()]


def _images_by_stem(folder: Path) -> dict[Path, Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    left_out = LeftOut()
    found = by_stem(folder, left_out)
    if left_out.examples:
        warnings.warn(f"{folder}: left out {left_out}", stacklevel=3)
    return found

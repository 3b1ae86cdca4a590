"""Which files are segmented, what their outputs are called, and images in batches of one size."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from pspfast.data import read_image

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")

# Images of different sizes that wait for others of theirs, so that few batches are incomplete.
_WAITING_BATCHES = 4


@dataclass(frozen=True)
class Input:
    """A file to segment.

    Attributes:
        path: of the file.
        name: of its outputs, without their endings, in the output folder.
    """

    path: Path
    name: Path

    @property
    def is_video(self) -> bool:
        return self.path.suffix.lower() in VIDEO_SUFFIXES


@dataclass(frozen=True)
class Picture:
    """A decoded image ``[3, H, W]``, uint8."""

    source: Input
    image: Tensor

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """``[H, W, 3]``."""
        return self.image.permute(1, 2, 0).numpy()


def find_inputs(names: Sequence[str], output: Path) -> list[Input]:
    """The files of ``names``, each once.

    Outputs have the stems of the files, where these differ. Otherwise they keep their folders below
    the one that all files have in common; and their suffixes, where the names are still not enough.

    Args:
        names: files; folders, searched with their subfolders for images that are not hidden; and
            patterns, in which ``**`` stands for any folders.
        output: images below this folder are taken only when they are named themselves.

    Raises:
        FileNotFoundError: a name is no file or folder, and a pattern of none.
        ValueError: a folder has no images.
    """
    found = {
        Path(os.path.abspath(path)): path
        for name in names
        for path in _expand(name, output.resolve())
    }
    return [Input(*pair) for pair in zip(found.values(), _output_names([*found]), strict=True)]


def _expand(name: str, output: Path) -> list[Path]:
    path = Path(name)
    if path.is_dir():
        images = [p for p in sorted(path.rglob("*")) if _is_image_below(path, p, output)]
        if not images:
            raise ValueError(f"{name}: no images in this folder")
        return images
    if path.is_file():
        return [path]
    matches = sorted(glob(name, recursive=True))
    if not matches:
        raise FileNotFoundError(f"{name}: no such file or folder")
    # ** matches folders besides what is in them.
    return [p for p in map(Path, matches) if p.is_file() and output not in p.resolve().parents]


def _is_image_below(folder: Path, path: Path, output: Path) -> bool:
    return (
        path.suffix.lower() in IMG_EXTENSIONS
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        # A second run would find what the first one wrote.
        and output not in path.resolve().parents
    )


def _output_names(paths: list[Path]) -> list[Path]:
    names = [Path(path.stem) for path in paths]
    if len(set(names)) < len(names):
        common = os.path.commonpath([path.parent for path in paths])
        with_suffix = [path.relative_to(common) for path in paths]
        names = [path.with_suffix("") for path in with_suffix]
        if len(set(names)) < len(names):
            return with_suffix
    return names


def read_pictures(inputs: Iterable[Input], failures: list[Exception]) -> Iterator[Picture]:
    """Decodes images; adds to ``failures`` what says which could not be, and why."""
    for source in inputs:
        try:
            image = read_image(source.path)
        except (ValueError, OSError) as error:
            failures.append(error)
        else:
            yield Picture(source, image)


def batches_of_one_size(pictures: Iterable[Picture], batch_size: int) -> Iterator[list[Picture]]:
    """Batches of equal sizes, in the order in which they are complete.

    A few batches' images are held at most; then the size that waits the longest is not waited for.
    """
    waiting: dict[tuple[int, ...], list[Picture]] = {}
    for picture in pictures:
        size = tuple(picture.image.shape)
        waiting.setdefault(size, []).append(picture)
        if len(waiting[size]) == batch_size:
            yield waiting.pop(size)
        elif sum(map(len, waiting.values())) == _WAITING_BATCHES * batch_size:
            yield waiting.pop(next(iter(waiting)))
    yield from waiting.values()

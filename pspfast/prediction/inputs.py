"""Which files are segmented, what their outputs are called, and images in batches of one size."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from glob import glob, has_magic
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pspfast.data import read_image
from pspfast.data.search import IMAGE_SUFFIXES, LeftOut, find_images, is_regular
from pspfast.prediction.outputs import PICTURES

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")

# Images of different sizes that wait for others of theirs, so that few batches are incomplete.
_WAITING_BATCHES = 4


@dataclass(frozen=True)
class Input:
    """A file to segment.

    Attributes:
        path: of the file.
        name: of its outputs, without their endings, in the output folder; with ``/`` where they
            are in folders below it.
    """

    path: Path
    name: str

    @property
    def is_video(self) -> bool:
        return self.path.suffix.lower() in VIDEO_SUFFIXES


@dataclass
class Found:
    """What the names on the command line stand for.

    Attributes:
        inputs: files to segment.
        left_out: what a folder or pattern holds besides.
        failures: names of what cannot be read, a pipe for one.
    """

    inputs: list[Input] = field(default_factory=list)
    left_out: LeftOut = field(default_factory=LeftOut)
    failures: list[Exception] = field(default_factory=list)


@dataclass(frozen=True)
class Picture:
    """A decoded image ``[3, H, W]``, uint8."""

    source: Input
    image: Tensor

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """``[H, W, 3]``."""
        return self.image.permute(1, 2, 0).numpy()


def find_inputs(names: Sequence[str], output: Path) -> Found:
    """The files of ``names``, each once.

    Outputs have the stems of the files, where these differ. Otherwise they keep their folders below
    the one that all files have in common; and their suffixes, where the names are still not enough.

    Args:
        names: files; folders, searched with their subfolders for images by the rule of
            ``find_images``; and patterns, in which ``**`` stands for any folders.
        output: folder of the outputs. What an earlier run wrote there is taken only when it is
            named itself: files below it, where it lies in a folder or pattern that is searched;
            where it is that folder or above it, the pictures that the inputs found would have.

    Raises:
        FileNotFoundError: a name is no file or folder, and a pattern of none.
        ValueError: there are no images, or none in a folder; or an output would replace an input.
    """
    found = Found()
    paths: dict[Path, Path] = {}
    named: set[Path] = set()
    for name in names:
        is_named, files = _expand(name, output.resolve(), found)
        places = {Path(os.path.abspath(file)): file for file in files}
        paths |= places
        if is_named:
            named |= places.keys()
    outputs = _pictures(_inputs(paths), output)
    for place in [place for place in paths if place not in named and place in outputs]:
        found.left_out.add(paths.pop(place), "outputs of an earlier run")
    if not paths and not found.failures:
        raise ValueError(f"{', '.join(names)}: no images; left out: {found.left_out}")
    found.inputs = _inputs(paths)
    for place, source in _pictures(found.inputs, output).items():
        if place in paths:
            raise ValueError(
                f"output: {source.path} would be written over {paths[place]}, which is an input; "
                "choose another folder"
            )
    return found


def _expand(name: str, output: Path, found: Found) -> tuple[bool, list[Path]]:
    """Whether the files are named themselves, and the files."""
    path = Path(name)
    if path.is_dir():
        images = list(find_images(path, found.left_out))
        kept = _outside(images, path, output, found.left_out)
        if not kept:
            told = f"; left out: {found.left_out}" if found.left_out.examples else ""
            raise ValueError(f"{name}: no images in this folder{told}")
        return False, kept
    if is_regular(path):
        return True, [path]
    if os.path.lexists(path):
        problem = f"{name}: expected a file, got a pipe, device or broken link"
        found.failures.append(ValueError(problem))
        return True, []
    matches = sorted(map(Path, glob(name, recursive=True)))
    if not matches:
        raise FileNotFoundError(f"{name}: no such file or folder")
    files = []
    for match in matches:
        # ** matches folders besides what is in them.
        if match.is_dir():
            continue
        if match.suffix.lower() not in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES):
            found.left_out.add(match, "not images by their names")
        elif not is_regular(match):
            found.left_out.add(match, "broken links, pipes or devices")
        else:
            files.append(match)
    return False, _outside(files, _literal_folder(name), output, found.left_out)


def _outside(paths: list[Path], searched: Path, output: Path, left_out: LeftOut) -> list[Path]:
    """Those that are not below the output folder, if that lies below the folder searched."""
    if searched.resolve() not in output.parents:
        return paths
    kept = []
    for path in paths:
        if output in path.resolve().parents:
            left_out.add(path, "in the output folder")
        else:
            kept.append(path)
    return kept


def _literal_folder(pattern: str) -> Path:
    """The folder of a pattern, up to its first part with a wildcard."""
    parts = Path(pattern).parts
    literal = next(i for i, part in enumerate((*parts, "*")) if has_magic(part))
    return Path(*parts[:literal])


def _inputs(paths: dict[Path, Path]) -> list[Input]:
    """Files with the names of their outputs, by their absolute paths."""
    return [Input(*pair) for pair in zip(paths.values(), _output_names([*paths]), strict=True)]


def _pictures(inputs: list[Input], output: Path) -> dict[Path, Input]:
    """The pictures that inputs would get, by their absolute paths."""
    folder = Path(os.path.abspath(output))
    return {folder / f"{i.name}_{kind}.png": i for i in inputs for kind in PICTURES}


def _output_names(paths: list[Path]) -> list[str]:
    # Not Path.stem, which is "." for a file called "..jpg".
    names = [os.path.splitext(path.name)[0] for path in paths]
    if len(set(names)) < len(names):
        common = os.path.commonpath([path.parent for path in paths])
        with_suffix = [path.relative_to(common).as_posix() for path in paths]
        names = [os.path.splitext(name)[0] for name in with_suffix]
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

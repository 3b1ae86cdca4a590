"""Reading every file of a dataset once, before hours of training meet the broken one."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from pspfast.data.labels import LABEL_IDS, MAX_LISTED, LabelIds, list_ids
from pspfast.data.reading import image_orientation, read_image, read_label
from pspfast.data.samples import Sample


def check_samples(
    samples: Sequence[Sample],
    num_classes: int,
    ignore_index: int = 255,
    progress: bool = False,
    label_ids: LabelIds | None = None,
) -> NDArray[np.int64]:
    """Decode every image and label map and check that they can be trained on.

    Args:
        samples: (image, label) files; the label may be `None`.
        num_classes: K; valid ids are 0 to K-1 and `ignore_index`.
        ignore_index: id of pixels that are not to be learnt.
        progress: show a progress bar.
        label_ids: what the ids in the label files mean; `None` where they are class ids.

    Returns:
        How many pixels have each id, `[256]`.

    Raises:
        FileNotFoundError: files are missing, and nothing else is wrong.
        ValueError: the list is empty, or files are truncated, no images, of different size than
            their partner, or label maps with other ids. Names up to ten of the files.
    """
    if not samples:
        raise ValueError("check_samples: samples is empty")
    counts = np.zeros(256, np.int64)
    problems: list[Exception] = []
    # Threads: decoders work outside of Python's lock.
    with ThreadPoolExecutor() as pool:
        found = pool.map(
            lambda sample: _count_or_problem(sample, num_classes, ignore_index, label_ids), samples
        )
        shown: Iterable[NDArray[np.int64] | Exception] = tqdm(
            found, "checking files", len(samples), disable=not progress, leave=False
        )
        for result in shown:
            if isinstance(result, Exception):
                problems.append(result)
            else:
                counts += result
    if not problems:
        return counts
    lines = [f"{len(problems)} of {len(samples)} samples cannot be used:"]
    lines += [f"  {problem}" for problem in problems[:MAX_LISTED]]
    if len(problems) > MAX_LISTED:
        lines.append(f"  and {len(problems) - MAX_LISTED} more")
    missing = all(isinstance(problem, FileNotFoundError) for problem in problems)
    raise (FileNotFoundError if missing else ValueError)("\n".join(lines))


def _count_or_problem(
    sample: Sample, num_classes: int, ignore_index: int, label_ids: LabelIds | None
) -> NDArray[np.int64] | Exception:
    image_path, label_path = sample
    try:
        image = read_image(image_path)
        if label_path is None:
            return np.zeros(256, np.int64)
        label = read_label(label_path, label_ids)
        return check_pixels((image_path, label_path), image, label, num_classes, ignore_index)
    except FileNotFoundError as error:
        return FileNotFoundError(f"{error.filename}: no such file")
    except ValueError as error:
        return error


def check_pixels(
    files: tuple[Path, Path],
    image: torch.Tensor,
    label: torch.Tensor,
    num_classes: int,
    ignore_index: int,
) -> NDArray[np.int64]:
    """Check that a decoded sample can be trained on.

    Args:
        files: of image and label map, for the message.
        image: uint8 `[3, H, W]`.
        label: class ids, uint8 `[H, W]`.
        num_classes: K; valid ids are 0 to K-1 and `ignore_index`.
        ignore_index: id of pixels that are not to be learnt.

    Returns:
        How many pixels have each id, `[256]`.

    Raises:
        ValueError: the sizes differ, or an id is no class.
    """
    image_path, label_path = files
    if image.shape[-2:] != label.shape:
        orientation = image_orientation(image_path)
        turned = f" (as its EXIF orientation {orientation} says)" if orientation != 1 else ""
        raise ValueError(
            f"{label_path}: the label map is {_size(label)}, its image {image_path} is "
            f"{_size(image)}{turned}"
        )
    counts = np.bincount(label.numpy().ravel(), minlength=256)
    wrong = [int(i) for i in np.flatnonzero(counts) if i >= num_classes and i != ignore_index]
    if wrong:
        raise ValueError(
            f"{label_path}: the label map holds {list_ids(wrong)}; valid ids are 0 to "
            f"{num_classes - 1} and {ignore_index} (ignore){_hint(wrong, num_classes)}"
        )
    return counts


def _hint(wrong: list[int], num_classes: int) -> str:
    """What the ids of a label map may be."""
    for name, known in LABEL_IDS.items():
        if num_classes == known.num_classes and max(wrong) < len(known.classes):
            return f"; data.labels {name} takes 0 to {len(known.classes) - 1}"
    if wrong == [num_classes]:
        shifted = "data.label_map '{1: 0, 2: 1, ...}'"
        return f"; where the ids are 1 to {num_classes}, {shifted} shifts them"
    return ""


def _size(tensor: torch.Tensor) -> str:
    height, width = tensor.shape[-2:]
    return f"{width}x{height}"

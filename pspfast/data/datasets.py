"""Images with label maps, from list files and from folders."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from pspfast.data.labels import LabelIds

Sample = tuple[Path, Path | None]
Transform = Callable[[tv_tensors.Image, tv_tensors.Mask], tuple[torch.Tensor, torch.Tensor]]

# Modes whose pixels are the class ids themselves; palette entries are not looked up.
LABEL_MODES = {"1", "L", "P"}


def list_file_samples(list_file: str | Path, root: str | Path | None = None) -> list[Sample]:
    """Samples named by a text file, one "image label" line for each.

    Args:
        list_file: lines of two paths, or of one where there are no labels. Blank lines are skipped.
        root: what the paths are relative to; `None` is the list file's folder.

    Returns:
        (image, label) for each line; label is `None` where the line names none.

    Raises:
        FileNotFoundError: there is no such list file.
        ValueError: it is empty, or a line has more than two columns or not as many as the others.
    """
    list_file = Path(list_file)
    root = list_file.parent if root is None else Path(root)
    samples: list[Sample] = []
    columns = 0
    try:
        lines = list_file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{list_file}: not a text file, so no list of images") from error
    for number, line in enumerate(lines, start=1):
        names = line.split()
        if not names:
            continue
        columns = columns or len(names)
        if len(names) > 2 or len(names) != columns:
            raise ValueError(
                f"{list_file}, line {number}: expected {min(columns, 2)} paths without spaces "
                f"in them, got {line.strip()!r}"
            )
        samples.append((root / names[0], root / names[1] if len(names) == 2 else None))
    if not samples:
        raise ValueError(f"{list_file}: the list is empty")
    return samples


def folder_samples(images_dir: str | Path, labels_dir: str | Path) -> list[Sample]:
    """Samples of two folders: an image and the label map of the same name up to the suffix.

    Subfolders are searched too, and must have the same names in both. Label maps without an image
    are left out.

    Returns:
        (image, label), sorted by name.

    Raises:
        FileNotFoundError: a folder is missing, or an image has no label map.
        ValueError: there is no image, or two files differ by their suffix only.
    """
    images, labels = _images_by_stem(Path(images_dir)), _images_by_stem(Path(labels_dir))
    if not images:
        raise ValueError(f"{images_dir}: no images in this folder")
    alone = [str(path) for stem, path in images.items() if stem not in labels]
    if alone:
        more = f" and {len(alone) - 10} more" if len(alone) > 10 else ""
        raise FileNotFoundError(
            f"{labels_dir}: no label map for {len(alone)} of {len(images)} images: "
            f"{', '.join(alone[:10])}{more}"
        )
    return [(path, labels[stem]) for stem, path in images.items()]


def _images_by_stem(folder: Path) -> dict[Path, Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    suffixes = Image.registered_extensions()
    found: dict[Path, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in suffixes or path.name.startswith("."):
            continue
        stem = path.relative_to(folder).with_suffix("")
        if stem in found:
            raise ValueError(f"{path} and {found[stem]} have the same name; which one is meant?")
        found[stem] = path
    return found


def read_image(path: str | Path) -> tv_tensors.Image:
    """Decode an image to uint8 RGB `[3, H, W]`, upright as its EXIF orientation says.

    That is how viewers and annotation tools show it, hence how label maps are drawn; the label
    maps themselves carry no orientation.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be decoded.
    """
    with _naming(path), Image.open(path) as image:
        return tv_tensors.Image(F.pil_to_tensor(ImageOps.exif_transpose(image).convert("RGB")))


def read_label(path: str | Path, label_ids: LabelIds | None = None) -> tv_tensors.Mask:
    """Decode a label map to its class ids, uint8 `[H, W]`.

    Args:
        path: the file.
        label_ids: what the file's ids mean; `None` where they are class ids.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be decoded, its pixels are not 8-bit ids, or not in `label_ids`.
    """
    with _naming(path), Image.open(path) as image:
        if image.mode not in LABEL_MODES:
            raise ValueError(
                f"a label map must hold one 8-bit class id for each pixel (a grey or palette "
                f"image), got mode {image.mode}"
            )
        ids = np.array(image, dtype=np.uint8)
        if label_ids is not None:
            ids = label_ids.to_classes(ids)
        return tv_tensors.Mask(torch.from_numpy(ids))


@contextmanager
def _naming(path: str | Path) -> Iterator[None]:
    """Put the file's name in front of whatever a decoder raises."""
    try:
        yield
    except FileNotFoundError:
        raise
    # Broken files make Pillow raise OSError, SyntaxError, struct.error, zlib.error and others.
    except Exception as error:
        raise ValueError(f"{path}: {error}") from error


class SeededDataset(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Dataset whose random transform depends on seed, epoch and index, and on nothing else.

    So an item is the same in any worker process, with any number of them, and after training was
    resumed in the middle of an epoch.
    """

    def __init__(self, transform: Transform, seed: int) -> None:
        if seed < 0:
            raise ValueError(f"{type(self).__name__}: seed must not be negative, got {seed}")
        self.transform = transform
        self.seed = seed
        # In shared memory, so that workers that live on see the next epoch.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        raise NotImplementedError

    def load(self, index: int) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        """Image `[3, H, W]` and label map `[H, W]`, both uint8, before the transform."""
        raise NotImplementedError

    def set_epoch(self, epoch: int) -> None:
        """Choose the augmentation of the items read from now on, worker processes included."""
        self._epoch.fill_(epoch)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"{type(self).__name__}: no item {index} among {len(self)}")
        image, label = self.load(index)
        entropy = np.random.SeedSequence((self.seed, int(self._epoch), index))
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would reset the GPUs' generators as well.
            torch.default_generator.manual_seed(int(entropy.generate_state(1, np.uint64)[0]))
            return self.transform(image, label)


class SegmentationDataset(SeededDataset):
    """Images and label maps from files.

    Args:
        samples: (image, label) files, of `list_file_samples` or `folder_samples`.
        transform: takes a uint8 image `[3, H, W]` and a uint8 label map `[H, W]`; its result is the
            item. `TrainTransform` and `EvalTransform` give float32 `[3, h, w]` and int64 `[h, w]`.
        seed: of the transform's randomness.
        label_ids: what the ids in the label files mean; `None` where they are class ids.

    Raises:
        ValueError: there are no samples, or a sample has no label map.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        transform: Transform,
        seed: int = 0,
        label_ids: LabelIds | None = None,
    ) -> None:
        super().__init__(transform, seed)
        self.label_ids = label_ids
        if not samples:
            raise ValueError("SegmentationDataset: samples is empty")
        self.samples: list[tuple[Path, Path]] = []
        for image, label in samples:
            if label is None:
                raise ValueError(f"SegmentationDataset: no label map is given for {image}")
            self.samples.append((Path(image), Path(label)))

    def __len__(self) -> int:
        return len(self.samples)

    def load(self, index: int) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        image, label = self.samples[index]
        return read_image(image), read_label(label, self.label_ids)

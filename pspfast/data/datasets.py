"""Data sets of images with label maps."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset
from torchvision import tv_tensors

from pspfast.data.labels import LabelIds
from pspfast.data.reading import read_image, read_label
from pspfast.data.samples import Sample

Transform = Callable[[tv_tensors.Image, tv_tensors.Mask], tuple[torch.Tensor, torch.Tensor]]


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

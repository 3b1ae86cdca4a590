"""Samples that cannot be used, told by name instead of ending a worker."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from pspfast.data.checks import check_pixels
from pspfast.data.datasets import SeededDataset, SegmentationDataset, Transform
from pspfast.data.labels import LabelIds
from pspfast.data.samples import Sample


class CheckedDataset(SegmentationDataset):
    """Image and label files that are checked whenever they are read.

    They may have changed since they were checked before training, or not have been checked.

    Args:
        classes: K; valid ids are 0 to K-1 and ``ignore_index``.
        ignore_index: id of pixels that are not to be learnt.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        transform: Transform,
        seed: int = 0,
        label_ids: LabelIds | None = None,
        *,
        classes: int,
        ignore_index: int,
    ) -> None:
        super().__init__(samples, transform, seed, label_ids)
        self.classes, self.ignore_index = classes, ignore_index

    def load(self, index: int) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        image, label = super().load(index)
        check_pixels(self.samples[index], image, label, self.classes, self.ignore_index)
        return image, label


class UsableSamples(Dataset[tuple[Tensor, Tensor, str]]):
    """Items of a data set, and in the place of one that cannot be used the next that can.

    An item is image, labels, and what is wrong with the samples that it replaces, a line for each:
    none where nothing is.
    """

    def __init__(self, dataset: SeededDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, str]:
        problems: list[str] = []
        count = len(self.dataset)
        for i in range(index, index + count):
            try:
                return *self.dataset[i % count], "\n".join(problems)
            except (ValueError, OSError) as error:
                problems.append(" ".join(str(error).split()))
        raise ValueError(f"none of {count} samples can be used; the first: {problems[0]}")

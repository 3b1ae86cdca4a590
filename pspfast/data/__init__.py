"""Datasets, augmentation, class names and palettes. Needs the `train` extra."""

from pspfast.data.checks import check_samples
from pspfast.data.classes import CLASSES, ClassList, colorize, overlay
from pspfast.data.datasets import SegmentationDataset
from pspfast.data.labels import LABEL_IDS, LabelIds
from pspfast.data.reading import read_image, read_label
from pspfast.data.samples import folder_samples, list_file_samples
from pspfast.data.scenes.dataset import SceneDataset
from pspfast.data.sources import published_samples
from pspfast.data.transforms import IMAGENET_MEAN, IMAGENET_STD, EvalTransform, TrainTransform

__all__ = [
    "CLASSES",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "LABEL_IDS",
    "ClassList",
    "EvalTransform",
    "LabelIds",
    "SceneDataset",
    "SegmentationDataset",
    "TrainTransform",
    "check_samples",
    "colorize",
    "folder_samples",
    "list_file_samples",
    "overlay",
    "published_samples",
    "read_image",
    "read_label",
]

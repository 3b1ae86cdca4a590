"""The real files, where they are: in $PSPFAST_CAMVID, or beside the project."""

import os
from pathlib import Path

import pytest
import torch

from pspfast.data import (
    CLASSES,
    EvalTransform,
    SegmentationDataset,
    TrainTransform,
    check_samples,
    folder_samples,
    list_file_samples,
)

BESIDE = Path(__file__).parents[3] / "shared/data/camvid"
CAMVID = Path(os.environ.get("PSPFAST_CAMVID", BESIDE))

pytestmark = pytest.mark.skipif(not CAMVID.is_dir(), reason="CamVid is not on this machine")


@pytest.mark.parametrize(("split", "count"), [("train", 367), ("val", 101)])
def test_every_file_is_valid(split, count):
    samples = list_file_samples(CAMVID / f"{split}.txt")
    assert len(samples) == count
    check_samples(samples, CLASSES["camvid"].num_classes)
    assert sorted(samples) == folder_samples(CAMVID / "images" / split, CAMVID / "labels" / split)


def test_names_are_in_the_order_of_the_ids():
    assert CLASSES["camvid"].names == tuple((CAMVID / "classes.txt").read_text().split())


def test_items():
    samples = list_file_samples(CAMVID / "val.txt")[:3]
    image, label = SegmentationDataset(samples, EvalTransform())[1]
    assert image.shape == (3, 360, 480) and label.shape == (360, 480)
    # Normalised by ImageNet's statistics, street scenes come out near 0 and 1.
    assert image.mean().abs() < 1 and 0.5 < image.std() < 2
    image, label = SegmentationDataset(samples, TrainTransform((240, 320)))[1]
    assert image.shape == (3, 240, 320)
    assert set(torch.unique(label).tolist()) <= {*range(11), 255}

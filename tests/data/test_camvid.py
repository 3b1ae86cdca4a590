"""The real files."""

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


@pytest.mark.parametrize(("split", "count"), [("train", 367), ("val", 101)])
def test_every_file_is_valid(camvid, split, count):
    samples = list_file_samples(camvid / f"{split}.txt")
    assert len(samples) == count
    check_samples(samples, CLASSES["camvid"].num_classes)
    assert sorted(samples) == folder_samples(camvid / "images" / split, camvid / "labels" / split)


def test_names_mean_what_the_label_maps_show(camvid):
    """classes.txt has the names, but in another order than the ids of the label maps."""
    names = CLASSES["camvid"].names
    assert set(names) == set((camvid / "classes.txt").read_text().split())
    dataset = SegmentationDataset(list_file_samples(camvid / "val.txt")[::10], EvalTransform())
    pixels, heights, brightness = torch.zeros(3, len(names), dtype=torch.float64)
    for index in range(len(dataset)):
        image, labels = dataset.load(index)
        for i in range(len(names)):
            mask = labels == i
            pixels[i] += mask.sum()
            heights[i] += mask.nonzero()[:, 0].sum() / labels.shape[0]
            brightness[i] += image.double().mean(0)[mask].sum()
    heights, brightness = heights / pixels, brightness / pixels
    assert names[heights.argmin()] == names[brightness.argmax()] == "sky"
    assert names[heights.argmax()] == "road"
    assert heights[names.index("sidewalk")] > heights[names.index("car")]
    large = {names[i] for i in pixels.topk(4).indices}
    assert large == {"sky", "building", "tree", "road"}
    assert pixels[names.index("car")] > pixels[names.index("column_pole")]


def test_items(camvid):
    samples = list_file_samples(camvid / "val.txt")[:3]
    image, label = SegmentationDataset(samples, EvalTransform())[1]
    assert image.shape == (3, 360, 480) and label.shape == (360, 480)
    # Normalised by ImageNet's statistics, street scenes come out near 0 and 1.
    assert image.mean().abs() < 1 and 0.5 < image.std() < 2
    image, label = SegmentationDataset(samples, TrainTransform((240, 320)))[1]
    assert image.shape == (3, 240, 320)
    assert set(torch.unique(label).tolist()) <= {*range(11), 255}

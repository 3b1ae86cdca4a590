import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from pspfast.data import (
    CLASSES,
    LABEL_IDS,
    EvalTransform,
    SegmentationDataset,
    check_samples,
    read_label,
)

# labelIds of the Cityscapes benchmark that are evaluated, in the order of their train ids.
CITYSCAPES = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]


@pytest.fixture
def sample(tmp_path):
    """An image and a label file that holds the ids 0 to 33 and then 150."""
    ids = np.append(np.arange(34), [150, 150]).astype(np.uint8).reshape(4, 9)
    Image.fromarray(np.zeros((4, 9, 3), np.uint8)).save(tmp_path / "image.png")
    Image.fromarray(ids).save(tmp_path / "label.png")
    return tmp_path / "image.png", tmp_path / "label.png"


def test_cityscapes_ids_become_train_ids():
    expected = np.full(34, 255)
    expected[CITYSCAPES] = range(19)
    classes = LABEL_IDS["cityscapes_ids"].to_classes(np.arange(34, dtype=np.uint8))
    assert classes.dtype == np.uint8
    assert classes.tolist() == expected.tolist()


def test_ade20k_ids_are_shifted():
    classes = LABEL_IDS["ade20k"].to_classes(np.arange(151, dtype=np.uint8))
    assert classes.tolist() == [255, *range(150)]


@pytest.mark.parametrize(
    ("name", "class_list"), [("ade20k",) * 2, ("cityscapes_ids", "cityscapes")]
)
def test_the_way_back_is_the_inverse(name, class_list):
    label_ids = LABEL_IDS[name]
    assert label_ids.num_classes == CLASSES[class_list].num_classes
    classes = torch.arange(label_ids.num_classes).reshape(1, -1)
    file_ids = label_ids.to_file_ids(classes)
    assert file_ids.dtype == np.uint8
    assert label_ids.to_classes(file_ids).tolist() == classes.tolist()


def test_submissions_of_cityscapes_hold_label_ids():
    assert LABEL_IDS["cityscapes_ids"].to_file_ids(np.arange(19)).tolist() == CITYSCAPES


def test_ids_without_a_place_are_named():
    ids = LABEL_IDS["ade20k"]
    with pytest.raises(ValueError, match=r"label map holds 151, 255; valid ids are 0 to 150"):
        ids.to_classes(np.array([[0, 255], [151, 150]], np.uint8))
    with pytest.raises(ValueError, match=r"prediction holds -1, 150; valid ids are 0 to 149"):
        ids.to_file_ids(np.array([150, -1, 3]))


def test_ignored_ids_take_the_ignore_index():
    ids = dataclasses.replace(LABEL_IDS["ade20k"], ignore_index=200)
    assert ids.to_classes([0, 1]).tolist() == [200, 0]


def test_files_are_translated_when_read(sample):
    label = read_label(sample[1], LABEL_IDS["ade20k"])
    assert label.dtype == torch.uint8 and label.shape == (4, 9)
    assert label.flatten().tolist() == [255, *range(33), 149, 149]
    dataset = SegmentationDataset([sample], EvalTransform(), label_ids=LABEL_IDS["ade20k"])
    assert torch.equal(dataset[0][1], label.long())


def test_check_translates_first(sample):
    check_samples([sample], num_classes=150, label_ids=LABEL_IDS["ade20k"])
    with pytest.raises(ValueError, match=r"label\.png: the label map holds 150; .* 0 to 33"):
        check_samples([sample], num_classes=19, label_ids=LABEL_IDS["cityscapes_ids"])


def test_check_suggests_the_published_ids(sample):
    with pytest.raises(ValueError, match=r"holds 150; .* 255 \(ignore\); data.labels ade20k takes"):
        check_samples([sample], num_classes=150)
    with pytest.raises(ValueError, match=r"\(ignore\)$"):
        check_samples([sample], num_classes=19)

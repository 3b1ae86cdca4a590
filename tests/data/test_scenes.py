import numpy as np
import pytest
import torch

from pspfast.data import CLASSES, SceneDataset, TrainTransform
from pspfast.data.scenes.objects import Canvas


def test_scenes_are_determined_by_seed_and_index():
    dataset, again = SceneDataset(4, seed=1), SceneDataset(9, seed=1)
    again.set_epoch(5)
    for index in (3, 0):
        for one, other in zip(dataset.render(index), again.render(index), strict=True):
            assert np.array_equal(one, other)
    assert not np.array_equal(dataset.render(0)[0], dataset.render(1)[0])
    assert not np.array_equal(dataset.render(0)[0], SceneDataset(4, seed=2).render(0)[0])


def test_scenes_hold_every_class_in_sensible_shares():
    dataset = SceneDataset(60)
    counts = np.zeros(256)
    for index in range(60):
        counts += np.bincount(dataset.render(index)[1].ravel(), minlength=256)
    share = counts / counts.sum()
    assert share[CLASSES["scenes"].num_classes :].sum() == 0
    assert share[: CLASSES["scenes"].num_classes].min() > 0.005
    assert share.max() < 0.5


def test_items_keep_the_contract():
    dataset = SceneDataset(3, size=(64, 96))
    picture, labels = dataset.render(1)
    assert picture.shape == (64, 96, 3) and labels.shape == (64, 96)
    assert picture.dtype == labels.dtype == np.uint8
    image, label = dataset[1]
    assert image.shape == (3, 64, 96) and image.dtype == torch.float32
    assert label.dtype == torch.int64 and np.array_equal(label, labels)
    assert len(dataset) == len(list(dataset)) == 3


def test_augmentation_follows_the_epoch():
    dataset = SceneDataset(2, transform=TrainTransform((48, 48)))
    first = dataset[0][0]
    dataset.set_epoch(1)
    second = dataset[0][0]
    assert first.shape == (3, 48, 48) and not torch.equal(first, second)
    dataset.set_epoch(0)
    assert torch.equal(dataset[0][0], first)


@pytest.mark.parametrize("size", [(32, 32), (33, 171), (200, 47)])
def test_scenes_of_any_size(size):
    dataset = SceneDataset(12, size=size)
    for index in range(12):
        picture, labels = dataset.render(index)
        assert picture.shape == (*size, 3) and labels.max() < CLASSES["scenes"].num_classes


@pytest.mark.parametrize(
    ("length", "size", "message"),
    [(0, (64, 64), "length must be positive, got 0"), (1, (64, 31), r"32 by 32, got \(64, 31\)")],
)
def test_wrong_options_are_named(length, size, message):
    with pytest.raises(ValueError, match=f"SceneDataset: .*{message}"):
        SceneDataset(length, size)


def test_canvas_draws_colour_and_class_at_the_same_place():
    canvas = Canvas(20, 30, haze=(0, 0, 0))
    canvas.begin(7, fog=0)
    canvas.disc(12.0, 9.0, 6.0, 5.0, (250, 10, 10))
    image = np.full((20, 30, 3), 100, np.float32)
    labels = np.zeros((20, 30), np.uint8)
    canvas.paste_onto(image, labels, np.ones((20, 30, 1), np.float32))
    y, x = np.mgrid[:20, :30] + 0.5
    radius = np.hypot((x - 12) / 6, (y - 9) / 5)
    assert (labels[radius < 0.93] == 7).all() and (labels[radius > 1.07] == 0).all()
    assert (image[radius < 0.8] == (250, 10, 10)).all() and (image[radius > 1.2] == 100).all()
    # Edges are mixed, and a pixel carries the class of what covers most of it.
    coverage = (image[..., 0] - 100) / 150
    assert ((coverage > 0.1) & (coverage < 0.9)).any()
    assert (labels[coverage > 0.7] == 7).all() and (labels[coverage < 0.3] == 0).all()


def test_canvas_fades_into_the_haze():
    canvas = Canvas(8, 8, haze=(200, 200, 200))
    canvas.begin(3, fog=0.5)
    canvas.box(0, 0, 8, 8, (100, 0, 300))
    image, labels = np.zeros((8, 8, 3), np.float32), np.zeros((8, 8), np.uint8)
    canvas.paste_onto(image, labels, np.full((8, 8, 1), 0.5, np.float32))
    assert (image == (75, 50, 125)).all() and (labels == 3).all()

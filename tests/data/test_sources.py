import numpy as np
import pytest
from PIL import Image

from pspfast.data import list_file_samples, published_samples, read_label


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_ade20k(tmp_path):
    for split in ("training", "validation"):
        touch(tmp_path, f"annotations/{split}/ADE_2.png", f"annotations/{split}/ADE_1.png")
        touch(tmp_path, f"images/{split}/ADE_2.jpg", f"images/{split}/ADE_1.jpg")
    for split, folder in (("train", "training"), ("val", "validation")):
        images, labels = tmp_path / "images" / folder, tmp_path / "annotations" / folder
        assert published_samples("ade20k", tmp_path, split) == [
            (images / "ADE_1.jpg", labels / "ADE_1.png"),
            (images / "ADE_2.jpg", labels / "ADE_2.png"),
        ]


def test_cityscapes(tmp_path):
    towns = {"train": ["bochum/bochum_7", "ulm/ulm_1", "ulm/ulm_2"], "val": ["lindau/lindau_0"]}
    for split, names in towns.items():
        for name in reversed(names):
            touch(tmp_path, f"leftImg8bit/{split}/{name}_leftImg8bit.png")
            for kind in ("labelIds.png", "color.png", "instanceIds.png", "polygons.json"):
                touch(tmp_path, f"gtFine/{split}/{name}_gtFine_{kind}")
    for split, names in towns.items():
        images, labels = tmp_path / "leftImg8bit" / split, tmp_path / "gtFine" / split
        assert published_samples("cityscapes", tmp_path, split) == [
            (images / f"{name}_leftImg8bit.png", labels / f"{name}_gtFine_labelIds.png")
            for name in names
        ]


def test_voc2012(tmp_path):
    voc = tmp_path / "VOCdevkit" / "VOC2012"
    listed = {"train": ["2008_2", "2007_1"], "val": ["2009_3"]}
    for split, names in listed.items():
        touch(voc, f"ImageSets/Segmentation/{split}.txt")
        (voc / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(names))
        assert published_samples("voc2012", tmp_path, split) == [
            (voc / f"JPEGImages/{name}.jpg", voc / f"SegmentationClass/{name}.png")
            for name in sorted(names)
        ]


@pytest.mark.parametrize("source", ["ade20k", "cityscapes", "voc2012"])
def test_missing_data_set_is_named(tmp_path, source):
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        published_samples(source, tmp_path, "train")


def test_voc_labels_are_palette_indices_with_an_ignored_border(tmp_path):
    """The line of a list for the augmented training set, and a file as VOC draws them."""
    list_file = tmp_path / "list" / "train_aug.txt"
    list_file.parent.mkdir()
    list_file.write_text("JPEGImages/2007_1.jpg SegmentationClassAug/2007_1.png\n")
    ((image, label),) = list_file_samples(list_file, tmp_path)
    assert image == tmp_path / "JPEGImages/2007_1.jpg"
    label.parent.mkdir()
    ids = np.array([[0, 255, 15, 20]], np.uint8)
    picture = Image.fromarray(ids, mode="P")
    picture.putpalette([7 * i % 256 for i in range(768)])
    picture.save(label)
    assert read_label(label).tolist() == ids.tolist()

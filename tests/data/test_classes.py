import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models.segmentation import FCN_ResNet50_Weights

from pspfast.data import CLASSES, ClassList, colorize, overlay


@pytest.mark.parametrize("name", CLASSES)
def test_known_class_lists_are_complete_and_unambiguous(name):
    class_list = CLASSES[name]
    assert class_list.num_classes == len(class_list.names) == len(class_list.palette)
    assert len(set(class_list.names)) == class_list.num_classes
    assert all(0 <= value <= 255 for colour in class_list.palette for value in colour)
    # ADE20K is published with one colour for road and skyscraper.
    same = 1 if name == "ade20k" else 0
    assert len(set(class_list.palette)) == class_list.num_classes - same
    # Black is for ignored pixels, but also VOC's colour of the background.
    assert (0, 0, 0) not in class_list.palette[name == "voc2012" :]


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        (
            "ade20k",
            {
                0: ("wall", (120, 120, 120)),
                2: ("sky", (6, 230, 230)),
                6: ("road", (140, 140, 140)),
                12: ("person", (150, 5, 61)),
                20: ("car", (0, 102, 200)),
                48: ("skyscraper", (140, 140, 140)),
                136: ("traffic light", (41, 0, 255)),
                149: ("flag", (92, 0, 255)),
            },
        ),
        (
            "voc2012",
            {
                0: ("background", (0, 0, 0)),
                1: ("aeroplane", (128, 0, 0)),
                15: ("person", (192, 128, 128)),
                20: ("tvmonitor", (0, 64, 128)),
            },
        ),
        (
            "cityscapes",
            {
                0: ("road", (128, 64, 128)),
                10: ("sky", (70, 130, 180)),
                13: ("car", (0, 0, 142)),
                18: ("bicycle", (119, 11, 32)),
            },
        ),
    ],
)
def test_published_classes_are_in_their_order(name, classes):
    class_list = CLASSES[name]
    assert class_list.num_classes == {"ade20k": 150, "voc2012": 21, "cityscapes": 19}[name]
    for i, (class_name, colour) in classes.items():
        assert (class_list.names[i], class_list.palette[i]) == (class_name, colour)


def test_voc_names_are_those_of_torchvisions_models():
    categories = FCN_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1.meta["categories"]
    assert CLASSES["voc2012"].names[1:] == tuple(categories[1:])


def test_cityscapes_names():
    assert CLASSES["cityscapes"].names == (
        *("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign"),
        *("vegetation", "terrain", "sky", "person", "rider", "car", "truck", "bus", "train"),
        *("motorcycle", "bicycle"),
    )


def test_camvid_is_in_the_order_of_its_label_maps():
    camvid = CLASSES["camvid"]
    assert camvid.num_classes == 11
    assert [camvid.names.index(n) for n in ("sky", "road", "bicyclist")] == [0, 3, 10]
    assert camvid.palette[camvid.names.index("road")] == (128, 64, 128)


def test_generic_palette_is_distinct_and_starts_as_pascal_voc():
    class_list = ClassList.generic(255)
    assert len({*class_list.palette, (0, 0, 0)}) == 256
    # Entries 1 to 4 and 20 of the published VOC palette: aeroplane, bicycle, bird, boat, tvmonitor.
    voc = [(128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128)]
    assert list(class_list.palette[:4]) == voc
    assert class_list.palette[19] == (0, 64, 128)
    assert class_list.names[:2] == ("class_0", "class_1")


@pytest.mark.parametrize("count", [0, 256])
def test_generic_needs_ids_of_eight_bits(count):
    with pytest.raises(ValueError, match=f"num_classes must be from 1 to 255, got {count}"):
        ClassList.generic(count)


def test_class_list_needs_a_colour_for_each_name():
    with pytest.raises(ValueError, match="each of the 2 names, got 1"):
        ClassList(("a", "b"), ((1, 2, 3),))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_colorize(dtype):
    class_list = ClassList(("a", "b"), ((1, 2, 3), (40, 50, 60)))
    labels = torch.tensor([[0, 1, 2], [255, 1, 0]], dtype=dtype)
    expected = [[(1, 2, 3), (40, 50, 60), (0, 0, 0)], [(0, 0, 0), (40, 50, 60), (1, 2, 3)]]
    for ids in (labels, labels.numpy()):
        colours = colorize(ids, class_list)
        assert colours.dtype == np.uint8
        assert colours.tolist() == [[list(c) for c in row] for row in expected]


def test_colorize_takes_negative_ids_for_ignored():
    class_list = ClassList(("a",), ((9, 9, 9),))
    assert colorize(np.array([[-100, 0]]), class_list).tolist() == [[[0, 0, 0], [9, 9, 9]]]


def test_overlay_blends_classes_and_leaves_ignored_pixels():
    class_list = ClassList(("a",), ((200, 100, 0),))
    image = Image.new("RGB", (2, 1), (100, 100, 100))
    blended = overlay(image, np.array([[0, 255]], np.uint8), class_list, alpha=0.25)
    assert blended.tolist() == [[[125, 100, 75], [100, 100, 100]]]
    assert blended.dtype == np.uint8


def test_overlay_refuses_another_size():
    with pytest.raises(ValueError, match=r"overlay: image .*\(4, 5, 3\), got \(5, 4, 3\)"):
        overlay(np.zeros((5, 4, 3), np.uint8), np.zeros((4, 5), np.uint8), ClassList.generic(2))

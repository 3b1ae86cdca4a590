import numpy as np
import pytest
import torch
from PIL import Image

from pspfast.data import CLASSES, Taxonomy, colorize, overlay


@pytest.mark.parametrize("name", CLASSES)
def test_known_taxonomies_are_complete_and_unambiguous(name):
    taxonomy = CLASSES[name]
    assert taxonomy.num_classes == len(taxonomy.names) == len(taxonomy.palette)
    assert len(set(taxonomy.names)) == taxonomy.num_classes
    assert len(set(taxonomy.palette)) == taxonomy.num_classes
    assert (0, 0, 0) not in taxonomy.palette


def test_camvid_is_in_the_order_of_its_label_maps():
    camvid = CLASSES["camvid"]
    assert camvid.num_classes == 11
    assert [camvid.names.index(n) for n in ("sky", "road", "bicyclist")] == [0, 3, 10]
    assert camvid.palette[camvid.names.index("road")] == (128, 64, 128)


def test_generic_palette_is_distinct_and_starts_as_pascal_voc():
    taxonomy = Taxonomy.generic(255)
    assert len({*taxonomy.palette, (0, 0, 0)}) == 256
    # Entries 1 to 4 and 20 of the published VOC palette: aeroplane, bicycle, bird, boat, tvmonitor.
    voc = [(128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128)]
    assert list(taxonomy.palette[:4]) == voc
    assert taxonomy.palette[19] == (0, 64, 128)
    assert taxonomy.names[:2] == ("class_0", "class_1")


@pytest.mark.parametrize("count", [0, 256])
def test_generic_needs_ids_of_eight_bits(count):
    with pytest.raises(ValueError, match=f"num_classes must be from 1 to 255, got {count}"):
        Taxonomy.generic(count)


def test_taxonomy_needs_a_colour_for_each_name():
    with pytest.raises(ValueError, match="each of the 2 names, got 1"):
        Taxonomy(("a", "b"), ((1, 2, 3),))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_colorize(dtype):
    taxonomy = Taxonomy(("a", "b"), ((1, 2, 3), (40, 50, 60)))
    labels = torch.tensor([[0, 1, 2], [255, 1, 0]], dtype=dtype)
    expected = [[(1, 2, 3), (40, 50, 60), (0, 0, 0)], [(0, 0, 0), (40, 50, 60), (1, 2, 3)]]
    for ids in (labels, labels.numpy()):
        colours = colorize(ids, taxonomy)
        assert colours.dtype == np.uint8
        assert colours.tolist() == [[list(c) for c in row] for row in expected]


def test_colorize_takes_negative_ids_for_ignored():
    taxonomy = Taxonomy(("a",), ((9, 9, 9),))
    assert colorize(np.array([[-100, 0]]), taxonomy).tolist() == [[[0, 0, 0], [9, 9, 9]]]


def test_overlay_blends_classes_and_leaves_ignored_pixels():
    taxonomy = Taxonomy(("a",), ((200, 100, 0),))
    image = Image.new("RGB", (2, 1), (100, 100, 100))
    blended = overlay(image, np.array([[0, 255]], np.uint8), taxonomy, alpha=0.25)
    assert blended.tolist() == [[[125, 100, 75], [100, 100, 100]]]
    assert blended.dtype == np.uint8


def test_overlay_refuses_another_size():
    with pytest.raises(ValueError, match=r"overlay: image .*\(4, 5, 3\), got \(5, 4, 3\)"):
        overlay(np.zeros((5, 4, 3), np.uint8), np.zeros((4, 5), np.uint8), Taxonomy.generic(2))

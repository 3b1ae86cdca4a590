import multiprocessing

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from pspfast.data import (
    EvalTransform,
    SegmentationDataset,
    TrainTransform,
    folder_samples,
    list_file_samples,
    read_image,
    read_label,
)


@pytest.fixture
def samples(tmp_path):
    """Six images of 24 by 32 with label maps of ids 0 to 4."""
    rng = np.random.default_rng(0)
    made = []
    for i in range(6):
        image, label = tmp_path / f"images/{i}.png", tmp_path / f"labels/{i}.png"
        for path in (image, label):
            path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).save(image)
        Image.fromarray(rng.integers(0, 5, (24, 32), dtype=np.uint8)).save(label)
        made.append((image, label))
    return made


def items(loader):
    return [(image.clone(), label.clone()) for image, label in loader]


def same(left, right):
    return len(left) == len(right) and all(
        torch.equal(a, b)
        for one, other in zip(left, right, strict=True)
        for a, b in zip(one, other, strict=True)
    )


def test_list_file(tmp_path):
    listing = tmp_path / "lists" / "train.txt"
    listing.parent.mkdir()
    listing.write_text("a/1.jpg b/1.png\n\n  a/2.jpg\tb/2.png\n")
    expected = [("a/1.jpg", "b/1.png"), ("a/2.jpg", "b/2.png")]
    for root in (None, tmp_path):
        base = root or listing.parent
        assert list_file_samples(listing, root) == [(base / i, base / n) for i, n in expected]


def test_list_file_of_images_only(tmp_path):
    (tmp_path / "test.txt").write_text("a.jpg\nb.jpg\n")
    assert list_file_samples(tmp_path / "test.txt") == [
        (tmp_path / "a.jpg", None),
        (tmp_path / "b.jpg", None),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the list is empty"),
        (b"\n \n", "the list is empty"),
        (b"a b\nc\n", "line 2: expected 2 paths .*, got 'c'"),
        (b"a\nb c\n", "line 2: expected 1 paths .*, got 'b c'"),
        (b"my image.jpg label.png\n", "line 1: expected 2 paths without spaces"),
        (b"\xff\xd8\xff\xe0", "not a text file"),
    ],
)
def test_wrong_list_file_is_named(tmp_path, content, message):
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(ValueError, match=f"list.txt.*{message}"):
        list_file_samples(tmp_path / "list.txt")


def test_missing_list_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.txt"):
        list_file_samples(tmp_path / "nowhere.txt")


def test_folders_match_by_name_in_subfolders_too(tmp_path):
    labels = ("l/town/a.png", "l/b.png", "l/town/b.png")
    for name in ("i/b.jpg", "i/town/a.PNG", "i/town/b.tif", "i/notes.txt", *labels, "l/c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert folder_samples(tmp_path / "i", tmp_path / "l") == [
        (tmp_path / "i/b.jpg", tmp_path / "l/b.png"),
        (tmp_path / "i/town/a.PNG", tmp_path / "l/town/a.png"),
        (tmp_path / "i/town/b.tif", tmp_path / "l/town/b.png"),
    ]


def test_wrong_folders_are_named(tmp_path):
    images, labels = tmp_path / "i", tmp_path / "l"
    with pytest.raises(FileNotFoundError, match="i: no such folder"):
        folder_samples(images, labels)
    images.mkdir()
    labels.mkdir()
    with pytest.raises(ValueError, match="i: no images"):
        folder_samples(images, labels)
    (images / "a.jpg").touch()
    with pytest.raises(FileNotFoundError, match=r"l: no label map for 1 of 1 images: .*a\.jpg"):
        folder_samples(images, labels)
    (images / "a.png").touch()
    with pytest.raises(ValueError, match=r"a\.png and .*a\.jpg have the same name"):
        folder_samples(images, labels)


def test_item_is_the_decoded_pair(samples):
    dataset = SegmentationDataset(samples, lambda image, label: (image, label))
    image, label = dataset[2]
    assert np.array_equal(image.permute(1, 2, 0), np.asarray(Image.open(samples[2][0])))
    assert np.array_equal(label, np.asarray(Image.open(samples[2][1])))
    assert len(dataset) == 6
    image, label = SegmentationDataset(samples, EvalTransform())[2]
    assert image.dtype == torch.float32 and label.dtype == torch.int64


def test_palette_labels_are_ids_and_not_greys(tmp_path):
    ids = np.arange(6, dtype=np.uint8).reshape(2, 3)
    picture = Image.fromarray(ids)
    picture.putpalette([10, 200, 30] * 256)
    picture.save(tmp_path / "label.png")
    assert Image.open(tmp_path / "label.png").mode == "P"
    assert np.array_equal(read_label(tmp_path / "label.png"), ids)


def test_two_class_bitmap_is_a_label_map(tmp_path):
    ids = np.array([[True, False, True]])
    Image.fromarray(ids).save(tmp_path / "label.png")
    assert read_label(tmp_path / "label.png").tolist() == [[1, 0, 1]]


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_every_kind_of_image_becomes_rgb(tmp_path, mode):
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    Image.new("RGB", (5, 4), (200, 200, 200)).convert(mode).save(path)
    image = read_image(path)
    assert image.shape == (3, 4, 5) and image.dtype == torch.uint8
    assert (image.float() - 200).abs().max() <= 4  # the nearest entry of the palette


def test_images_stand_upright(tmp_path):
    pixels = np.zeros((2, 4, 3), np.uint8)
    pixels[0, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by a quarter, clockwise, to show
    Image.fromarray(pixels).save(tmp_path / "image.png", exif=exif)
    upright = read_image(tmp_path / "image.png")
    assert torch.equal(upright[0], torch.from_numpy(np.rot90(pixels[..., 0], -1).copy()))


@pytest.mark.parametrize("reader", [read_image, read_label])
def test_unreadable_files_are_named(tmp_path, samples, reader):
    broken = tmp_path / "broken.png"
    broken.write_text("no image")
    with pytest.raises(ValueError, match=r"broken\.png"):
        reader(broken)
    broken.write_bytes(samples[0][0 if reader is read_image else 1].read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"broken\.png.*truncated"):
        reader(broken)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png"):
        reader(tmp_path / "nowhere.png")


def test_colour_labels_are_refused(samples):
    with pytest.raises(ValueError, match=r"images.0\.png: a label map must hold one .* mode RGB"):
        read_label(samples[0][0])


def test_dataset_needs_samples_with_labels(samples):
    with pytest.raises(ValueError, match="samples is empty"):
        SegmentationDataset([], EvalTransform())
    with pytest.raises(ValueError, match=r"no label map is given for .*0\.png"):
        SegmentationDataset([(samples[0][0], None)], EvalTransform())
    with pytest.raises(ValueError, match="seed must not be negative, got -1"):
        SegmentationDataset(samples, EvalTransform(), seed=-1)


def test_iterating_ends(samples):
    assert len(list(SegmentationDataset(samples, EvalTransform()))) == 6
    with pytest.raises(IndexError, match="no item -1 among 6"):
        SegmentationDataset(samples, EvalTransform())[-1]


def test_items_depend_on_seed_epoch_and_index_alone(samples):
    transform = TrainTransform((16, 16))
    dataset = SegmentationDataset(samples, transform, seed=5)
    dataset.set_epoch(3)
    reference = [dataset[i] for i in range(6)]
    resumed = SegmentationDataset(samples, transform, seed=5)
    resumed.set_epoch(3)
    torch.manual_seed(99)
    assert same([resumed[i] for i in reversed(range(6))], reference[::-1])
    resumed.set_epoch(4)
    assert not any(torch.equal(resumed[i][0], reference[i][0]) for i in range(6))
    other = SegmentationDataset(samples, transform, seed=6)
    other.set_epoch(3)
    assert not any(torch.equal(other[i][0], reference[i][0]) for i in range(6))
    twice = SegmentationDataset(samples[:1] * 2, transform)
    assert not torch.equal(twice[0][0], twice[1][0])


def test_reading_leaves_the_random_state_alone(samples):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    SegmentationDataset(samples, TrainTransform((16, 16)))[0]
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_living_workers_see_the_next_epoch(samples, method):
    dataset = SegmentationDataset(samples, TrainTransform((16, 16)), seed=2)
    worker = DataLoader(
        dataset, 2, num_workers=1, persistent_workers=True, multiprocessing_context=method
    )
    epochs = []
    for epoch in (0, 1, 0):
        dataset.set_epoch(epoch)
        expected = items(DataLoader(dataset, 2))
        epochs.append(items(worker))
        assert same(epochs[-1], expected)
    assert not same(epochs[0], epochs[1])


def test_items_do_not_depend_on_the_number_of_workers(samples):
    dataset = SegmentationDataset(samples, TrainTransform((16, 16)))
    one, two = (items(DataLoader(dataset, 2, num_workers=n)) for n in (0, 2))
    assert same(one, two)

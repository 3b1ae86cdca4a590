import numpy as np
import pytest
from PIL import Image

from pspfast.data import check_samples


def save(path, pixels, **options):
    Image.fromarray(np.asarray(pixels)).save(path, **options)
    return path


@pytest.fixture
def sample(tmp_path):
    rng = np.random.default_rng(1)
    label = rng.integers(0, 3, (20, 30), dtype=np.uint8)
    label[:2] = 255
    image = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    return save(tmp_path / "image.jpg", image), save(tmp_path / "label.png", label)


def test_good_samples_pass(sample):
    check_samples([sample, (sample[0], None)], num_classes=3)


def test_empty_list():
    with pytest.raises(ValueError, match="samples is empty"):
        check_samples([], num_classes=3)


def test_missing_files_are_named(sample, tmp_path):
    image, label = sample
    gone = tmp_path / "gone.jpg"
    with pytest.raises(FileNotFoundError, match=r"1 of 2 samples.*\n.*gone\.jpg: no such file"):
        check_samples([sample, (gone, label)], num_classes=3)
    with pytest.raises(FileNotFoundError, match=r"gone\.jpg: no such file"):
        check_samples([(image, gone)], num_classes=3)


@pytest.mark.parametrize("which", [0, 1])
def test_truncated_and_foreign_files_are_named(sample, which):
    path = sample[which]
    # The header stays whole, so only decoding finds it.
    path.write_bytes(path.read_bytes()[: -path.stat().st_size // 3])
    with pytest.raises(ValueError, match=f"{path.name}.*truncated"):
        check_samples([sample], num_classes=3)
    path.write_text("hello")
    with pytest.raises(ValueError, match=f"{path.name}.*cannot identify image"):
        check_samples([sample], num_classes=3)


def test_different_sizes_are_named(sample, tmp_path):
    turned = save(tmp_path / "turned.png", np.zeros((30, 20), np.uint8))
    with pytest.raises(
        ValueError, match=r"turned\.png.* is 20x30, its image .*image\.jpg is 30x20"
    ):
        check_samples([(sample[0], turned)], num_classes=3)


def test_orientation_that_explains_the_sizes_is_mentioned(sample, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = save(tmp_path / "phone.jpg", np.zeros((20, 30, 3), np.uint8), exif=exif)
    with pytest.raises(ValueError, match=r"20x30.*EXIF orientation 6"):
        check_samples([(image, sample[1])], num_classes=3)


def test_wrong_ids_are_named(sample):
    with pytest.raises(
        ValueError, match=r"label\.png.*holds 2, 255; valid ids are 0 to 1 and 254 \(ignore\)"
    ):
        check_samples([sample], num_classes=2, ignore_index=254)
    check_samples([sample], num_classes=256, ignore_index=0)


def test_many_wrong_ids_are_cut_short(sample, tmp_path):
    label = save(
        tmp_path / "grey.png", np.arange(600, dtype=np.uint16).reshape(20, 30).astype("u1")
    )
    with pytest.raises(ValueError, match=r"holds 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, \.\.\.; valid"):
        check_samples([(sample[0], label)], num_classes=3)


def test_colour_label_is_named(sample):
    with pytest.raises(ValueError, match=r"image\.jpg: a label map must hold one .* mode RGB"):
        check_samples([(sample[0], sample[0])], num_classes=3)


def test_image_of_unknown_range_is_named(sample, tmp_path):
    deep = save(tmp_path / "deep.tif", np.full((20, 30), 3000, np.int32))
    with pytest.raises(ValueError, match=r"deep\.tif: the image has mode I, whose range"):
        check_samples([(deep, sample[1])], num_classes=3)


def test_all_problems_come_in_one_message_up_to_ten(sample, tmp_path):
    bad = [(tmp_path / f"gone{i}.jpg", sample[1]) for i in range(12)]
    (tmp_path / "broken.jpg").write_text("hello")
    with pytest.raises(ValueError) as error:
        check_samples([(tmp_path / "broken.jpg", sample[1]), sample, *bad], num_classes=3)
    lines = str(error.value).splitlines()
    assert lines[0] == "13 of 14 samples cannot be used:"
    assert "broken.jpg" in lines[1] and "gone8.jpg" in lines[10]
    assert lines[11:] == ["  and 3 more"]


def test_progress_bar_goes_to_stderr(sample, capsys):
    check_samples([sample], num_classes=3, progress=True)
    assert "checking files" in capsys.readouterr().err
    check_samples([sample], num_classes=3)
    assert capsys.readouterr().err == ""

"""``pspfast predict``: what it writes, prints and leaves out."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from pspfast import backend
from pspfast.cli import main
from pspfast.config import Config
from pspfast.data import CLASSES, IMAGENET_MEAN, IMAGENET_STD, ClassList
from pspfast.model_files import build_model, load_model, save_weights
from pspfast.prediction.options import PredictConfig
from pspfast.prediction.predict import predict

KINDS = ("labels", "color", "overlay")
# Ids of Cityscapes' classes in its label files.
CITYSCAPES_IDS = [7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33]


def make_checkpoint(path: Path, config: Config, class_list: ClassList) -> str:
    """A model whose classes vary from pixel to pixel, not trained."""
    torch.manual_seed(0)
    model = build_model(config, class_list.num_classes)
    torch.nn.init.normal_(model.cls[-1].weight, std=3)
    save_weights(path, model.state_dict(), config, class_list, {})
    return str(path)


@pytest.fixture
def checkpoint(config: Config, tmp_path: Path) -> str:
    return make_checkpoint(tmp_path / "model.safetensors", config, ClassList.generic(5))


def save_noise(path: Path, *shape: int) -> str:
    """Blots, so that the classes do not depend on rounding."""
    random = np.random.default_rng(len(path.name) + shape[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    small = random.integers(0, 256, (6, 6, *shape[2:]), dtype=np.uint8)
    Image.fromarray(small).resize(shape[1::-1]).save(path)
    return str(path)


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    """A colour photo of odd size, a grey one, and one with transparency."""
    shapes = (("photo.jpg", (61, 75, 3)), ("grey.png", (24, 37)), ("a.png", (29, 38, 4)))
    return [save_noise(tmp_path / name, *shape) for name, shape in shapes]


def plain_labels(checkpoint: str, image: str) -> np.ndarray:
    """Of the whole image, in plain PyTorch."""
    pixels = np.asarray(Image.open(image).convert("RGB")) / 255
    normal = torch.from_numpy((pixels - IMAGENET_MEAN) / IMAGENET_STD).float()
    with torch.no_grad(), backend("reference"):
        logits = load_model(checkpoint).model(normal.permute(2, 0, 1)[None])
        return F.interpolate(logits, pixels.shape[:2]).argmax(1)[0].numpy()


def read(path: Path) -> np.ndarray:
    return np.array(Image.open(path))


@pytest.mark.parametrize("batch_size", [1, 2])
def test_pictures(images: list[str], checkpoint: str, tmp_path: Path, batch_size: int) -> None:
    images.append(save_noise(tmp_path / "other.png", 24, 37))
    output = tmp_path / "new" / "folder"
    result = predict(PredictConfig(images, checkpoint, str(output), batch_size=batch_size))
    assert sorted(result.written) == sorted(output.iterdir())
    assert {path.name for path in result.written} == {
        f"{stem}_{kind}.png" for stem in ("photo", "grey", "a", "other") for kind in KINDS
    }
    for name in images:
        expected = plain_labels(checkpoint, name)
        assert len(np.unique(expected)) > 1
        files = [output / f"{Path(name).stem}_{kind}.png" for kind in KINDS]
        labels, color, overlay = map(read, files)
        assert (labels == expected).mean() > 0.999
        assert files[0].read_bytes()[24] == 8, "bits of a pixel, in the PNG header"
        np.testing.assert_array_equal(Image.open(files[0]).convert("RGB"), color)
        np.testing.assert_array_equal(color, np.array(ClassList.generic(5).palette)[labels])
        mean = (color.astype(float) + np.array(Image.open(name).convert("RGB"))) / 2
        np.testing.assert_allclose(overlay, mean, atol=0.5)


def test_windows(images: list[str], checkpoint: str, tmp_path: Path) -> None:
    """The grey image is smaller than a window; one window of an image's size is the image."""
    for crop, same in (((33, 41), False), ((65, 81), True)):
        options = PredictConfig(
            images[:2], checkpoint, str(tmp_path / "out"), ("labels",), crop_size=crop
        )
        predict(options)
        photo, grey = (read(tmp_path / "out" / f"{stem}_labels.png") for stem in ("photo", "grey"))
        assert (photo.shape, grey.shape) == ((61, 75), (24, 37))
        agreement = (photo == plain_labels(checkpoint, images[0])).mean()
        assert agreement > 0.3
        assert same or agreement < 1
    with pytest.raises(ValueError, match=r"crop_size: expected sizes 8n\+1"):
        predict(PredictConfig(images, checkpoint, str(tmp_path / "none"), crop_size=(32, 40)))
    assert not (tmp_path / "none").exists()


def test_labels_for_submission(images: list[str], config: Config, tmp_path: Path) -> None:
    class_list = CLASSES["cityscapes"]
    output = tmp_path / "out"
    predicted = []
    for labels in ("ids", "cityscapes_ids"):
        config.data.classes, config.data.labels = "cityscapes", labels
        model = make_checkpoint(tmp_path / "model.safetensors", config, class_list)
        predict(PredictConfig(images[:1], model, str(output), ("labels", "color")))
        predicted.append(read(output / "photo_labels.png"))
        colors = Image.open(output / "photo_labels.png").convert("RGB")
        np.testing.assert_array_equal(colors, read(output / "photo_color.png"))
    assert len(np.unique(predicted[0])) > 1
    np.testing.assert_array_equal(predicted[1], np.array(CITYSCAPES_IDS)[predicted[0]])


def test_shares(
    images: list[str], checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    args = ["predict", *images, "--checkpoint", checkpoint, "--output", str(output)]
    main([*args, "--outputs=[labels,shares]", "--batch_size=2"])
    printed = capsys.readouterr().out.splitlines()
    assert len(list(output.iterdir())) == 4
    assert str(output / "a_labels.png") in printed
    rows = list(csv.DictReader((output / "shares.csv").open(newline="")))
    assert {row["image"] for row in rows} == {*images, "total"}
    assert rows[-1]["image"] == "total"
    labels = {name: read(output / f"{Path(name).stem}_labels.png").ravel() for name in images}
    labels["total"] = np.concatenate([*labels.values()])
    for row in rows:
        ids = labels[row["image"]]
        assert int(row["pixels"]) == ids.size
        expected = np.bincount(ids, minlength=5) / ids.size
        got = [float(row[f"class_{i}"]) for i in range(5)]
        np.testing.assert_allclose(got, expected, atol=1e-6)
        largest = int(expected.argmax())
        start = f"| {row['image']} | class_{largest} {100 * expected[largest]:.1f}"
        assert any(line.startswith(start) for line in printed)
    assert printed[-1].count("class_") == np.count_nonzero(np.bincount(labels["total"]))


def test_bad_files_are_named_at_the_end(
    images: list[str], checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.jpg").write_bytes(Path(images[0]).read_bytes()[:200])
    (tmp_path / "notes.txt").write_text("no image")
    bad = [str(tmp_path / name) for name in ("broken.jpg", "notes.txt")]
    output = tmp_path / "out"
    with pytest.raises(SystemExit) as stop:
        main(["predict", *bad, *images, "--checkpoint", checkpoint, "--output", str(output)])
    assert stop.value.code == 1
    assert len(list(output.iterdir())) == 9
    printed = capsys.readouterr()
    assert "broken.jpg" not in printed.out
    lines = [line for line in printed.err.splitlines() if line.startswith("pspfast: ")]
    assert ["broken.jpg" in lines[0], "notes.txt" in lines[1]] == [True, True]
    assert "Truncated" in lines[0]
    assert "cannot identify image file" in lines[1]


def test_outputs_are_replaced_whole(
    images: list[str], checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    options = PredictConfig(images[:1], checkpoint, str(output), ("color",))
    output.mkdir()
    (output / "photo_color.png").write_text("older")
    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", lambda self, file, format: file.write(b"half") / 0)
        with pytest.raises(ZeroDivisionError):
            predict(options)
    assert [path.read_text() for path in output.iterdir()] == ["older"]
    predict(options)
    assert read(output / "photo_color.png").shape == (61, 75, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 1.5}, "alpha: expected 0 to 1"),
        ({"outputs": ()}, "outputs: expected at least one"),
        ({"batch_size": 0}, "batch_size: expected at least 1"),
        ({"crop_size": (0, 33)}, "crop_size: expected at least 1"),
    ],
    ids=str,
)
def test_wrong_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PredictConfig(["image.png"], "checkpoint", **options)

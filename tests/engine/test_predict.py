"""Files of ``pspfast predict``."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pspfast.engine.config import PredictConfig
from pspfast.engine.predict import predict


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    """A colour photo of odd size, a grey one, and one with transparency."""
    random = np.random.default_rng(0)
    paths = []
    for name, shape in (("photo.jpg", (31, 45, 3)), ("grey.png", (24, 17)), ("a.png", (9, 8, 4))):
        Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)).save(tmp_path / name)
        paths.append(str(tmp_path / name))
    return paths


def test_files_have_the_images_sizes(images: list[str], finished_run: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "folder"
    written = predict(PredictConfig(images, str(finished_run / "final.safetensors"), str(output)))
    assert [path.name for path in written] == [
        "photo_overlay.png",
        "grey_overlay.png",
        "a_overlay.png",
    ]
    assert len(list(output.iterdir())) == 9
    for name in images:
        image = Image.open(name)
        stem = Path(name).stem
        labels, color, blend = (
            Image.open(output / f"{stem}_{kind}.png") for kind in ("labels", "color", "overlay")
        )
        assert labels.size == color.size == blend.size == image.size
        assert labels.mode == "P"
        assert np.array(labels).max() < 3
        np.testing.assert_array_equal(np.array(labels.convert("RGB")), np.array(color))
        mean = (np.array(color).astype(float) + np.array(image.convert("RGB"))) / 2
        np.testing.assert_allclose(np.array(blend), mean, atol=0.5)


def test_broken_image_is_named_before_anything_is_written(
    images: list[str], finished_run: Path, tmp_path: Path
) -> None:
    (tmp_path / "broken.jpg").write_bytes(Path(images[0]).read_bytes()[:200])
    output = tmp_path / "out"
    options = PredictConfig(
        [*images, str(tmp_path / "broken.jpg")],
        str(finished_run / "final.safetensors"),
        str(output),
    )
    with pytest.raises(ValueError, match=r"broken\.jpg"):
        predict(options)
    assert not output.exists()


def test_images_of_one_stem_are_refused(finished_run: Path, tmp_path: Path) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / folder / "same.png")
    images = [str(tmp_path / folder / "same.png") for folder in ("x", "y")]
    options = PredictConfig(images, str(finished_run / "final.safetensors"), str(tmp_path / "out"))
    with pytest.raises(ValueError, match="same files"):
        predict(options)

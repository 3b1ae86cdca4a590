"""Samples that break, or cannot be used, while a run trains."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_runs import variant

from pspfast import labelled_data
from pspfast.config import Config
from pspfast.training.log import read_log
from pspfast.training.trainer import train


def break_image(config: Config, folder: Path) -> tuple[Config, Path]:
    """A list of which one image is truncated."""
    root = Path(config.data.root)
    bad = folder / "bad.png"
    bad.write_bytes((root / "images/0.png").read_bytes()[:500])
    lines = (root / "train.txt").read_text().splitlines()
    listed = folder / "broken.txt"
    listed.write_text("\n".join([*lines[:5], f"{bad} labels/0.png"]))
    return variant(config, "data", train_list=str(listed)), bad


@pytest.mark.parametrize("workers", [0, 1])
def test_image_that_broke_since_stops_the_run(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    config, bad = break_image(variant(config, "data", workers=workers), tmp_path)
    monkeypatch.setattr(labelled_data, "check_samples", lambda *args: np.ones(256))
    with pytest.raises(ValueError, match=f"^{bad}: .*truncated"):
        train(config)


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_image_is_skipped_and_reported(
    config: Config, tmp_path: Path, capfd: pytest.CaptureFixture[str], workers: int
) -> None:
    config, bad = break_image(variant(config, "data", workers=workers, skip_bad=True), tmp_path)
    train(config)
    for record in read_log(Path(config.train.output)):
        assert len(record["skipped"]) == 1
        assert record["skipped"][0].startswith(f"{bad}: ")
    said = capfd.readouterr()
    assert said.out.count(f"skipped 1 samples:\n  {bad}: ") == 2
    assert said.err.count(f"skipped {bad}: ") == 2


def test_wrong_ids_in_training_are_named(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    label = tmp_path / "wrong.png"
    Image.new("L", (48, 40), 7).save(label)
    (tmp_path / "wrong.txt").write_text(f"images/0.png {label}\nimages/1.png labels/1.png")
    config = variant(config, "data", train_list=str(tmp_path / "wrong.txt"))
    monkeypatch.setattr(labelled_data, "check_samples", lambda *args: np.ones(256))
    with pytest.raises(ValueError, match=f"^{label}: the label map holds 7; valid ids are 0 to 2"):
        train(config)


def test_no_usable_sample_is_an_error(config: Config, tmp_path: Path) -> None:
    config, bad = break_image(variant(config, "data", skip_bad=True), tmp_path)
    Path(config.data.train_list).write_text(f"{bad} labels/0.png\n" * 2)
    with pytest.raises(ValueError, match=f"none of 2 samples can be used; the first: {bad}"):
        train(config)

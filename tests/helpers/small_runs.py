"""A data set of tiny files, and runs that take a second."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image

from pspfast.config import AugmentConfig, Config, DataConfig, ModelConfig, TrainConfig
from pspfast.training.checkpoints import list_checkpoints, load_checkpoint
from pspfast.training.trainer import train

SIZES = [(40, 48), (33, 57), (49, 41), (40, 48), (48, 64), (40, 50)]


@pytest.fixture(autouse=True)
def fresh_accelerator() -> Iterator[None]:
    """accelerate keeps one precision for the whole process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads cost more than they bring at these sizes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six samples of three classes in vertical stripes, with ignored pixels; list files."""
    root = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    for i, (height, width) in enumerate(SIZES):
        labels = np.tile(np.arange(width) * 3 // width, (height, 1)).astype(np.uint8)
        labels[:5, :7] = 255
        noise = random.integers(0, 60, (height, width, 3))
        pixels = (noise + 80 * np.minimum(labels, 2)[..., None]).astype(np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{i}.png")
        Image.fromarray(labels).save(root / "labels" / f"{i}.png")
    lines = [f"images/{i}.png labels/{i}.png\n" for i in range(len(SIZES))]
    (root / "train.txt").write_text("".join(lines))
    (root / "val.txt").write_text("".join(lines[:2]))
    return root


def make_config(data_root: Path, output: Path) -> Config:
    """Two epochs of three steps."""
    return Config(
        ModelConfig(layers=18, stem="7x7", head_channels=8, aux_channels=8),
        DataConfig(
            train_list="train.txt", val_list="val.txt", root=str(data_root), classes=3, workers=0
        ),
        AugmentConfig(crop_size=(33, 41)),
        TrainConfig(output=str(output), epochs=2, batch_size=2),
    )


@pytest.fixture
def config(data_root: Path, tmp_path: Path) -> Config:
    return make_config(data_root, tmp_path / "run")


@pytest.fixture(scope="session")
def finished_run(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("finished")
    train(make_config(data_root, folder))
    return folder


def variant(config: Config, section: str = "train", **changes: object) -> Config:
    return replace(config, **{section: replace(getattr(config, section), **changes)})


def assert_same_result(folder: Path, expected: Path) -> None:
    got, want = (load_checkpoint(list_checkpoints(f)[-1]) for f in (folder, expected))
    for name, value in want["model"].items():
        assert torch.equal(got["model"][name], value), name
    assert want["momentum"].keys() == got["momentum"].keys()
    for name, value in want["momentum"].items():
        assert torch.equal(got["momentum"][name], value), name
    assert got["best_mIoU"] == want["best_mIoU"]

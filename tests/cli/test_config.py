"""Options: YAML round trip and ranges."""

from pathlib import Path

import pytest
import yaml

from pspfast.config import AugmentConfig, Config, DataConfig, ModelConfig, TrainConfig
from pspfast.evaluation.options import EvalConfig
from pspfast.prediction.options import PredictConfig


def test_yaml_round_trip(tmp_path: Path) -> None:
    config = Config(
        ModelConfig(layers=18, bins=(1, 2), stem="7x7"),
        DataConfig(train_list="list.txt", classes=7),
        AugmentConfig(crop_size=(33, 41), scale=(0.75, 1.0)),
        TrainConfig(lr=1e-3, precision="bf16"),
    )
    config.save(tmp_path / "config.yaml")
    read = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert Config.from_dict(read) == config
    assert read["augment"]["crop_size"] == [33, 41]


def test_defaults_are_semsegs() -> None:
    train = Config().train
    assert (train.lr, train.momentum, train.weight_decay) == (0.01, 0.9, 1e-4)
    assert (train.power, train.aux_weight, train.head_lr_factor) == (0.9, 0.4, 10)
    assert Config().augment == AugmentConfig((473, 473), (0.5, 2.0), 10.0, 0.5, 0.5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrainConfig(epochs=0), "train.epochs: expected at least 1, got 0"),
        (lambda: TrainConfig(lr=-1), "train.lr: expected at least 0, got -1"),
        (
            lambda: AugmentConfig(scale=(2.0, 0.5)),
            "augment.scale: expected 0 < smallest <= largest",
        ),
        (lambda: AugmentConfig(rotate=100), "augment.rotate: expected an angle"),
        (lambda: AugmentConfig(flip=1.5), "augment.flip: expected a probability, got 1.5"),
        (lambda: AugmentConfig(crop_size=(0, 9)), "augment.crop_size"),
        (lambda: DataConfig(workers=-1), "data.workers"),
        (lambda: DataConfig(ignore_index=-100), "data.ignore_index: expected 0 to 255, got -100"),
        (lambda: DataConfig(train_images="x"), "train_images and train_labels"),
        (lambda: DataConfig(val_list="l", val_images="i", val_labels="l"), "got both"),
        (lambda: EvalConfig("c"), "expected one of --list, --images with --labels, and --source"),
        (
            lambda: EvalConfig("c", list="a", source="ade20k"),
            "expected one of --list, --images with --labels, and --source",
        ),
        (lambda: EvalConfig("c", source="ade20k"), "--root: expected the folder of ade20k"),
        (lambda: EvalConfig("c", images="i"), "expected both or neither"),
        (lambda: PredictConfig(["i"], "c", alpha=2), "alpha: expected 0 to 1, got 2"),
    ],
)
def test_wrong_options_are_named(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()

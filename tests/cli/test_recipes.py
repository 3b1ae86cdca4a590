"""Recipes: the published settings, how they are overridden, and a run of one."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from pspfast.cli import main
from pspfast.cli.parser import make_parser, take_recipe
from pspfast.config import AugmentConfig, Config, DataConfig, ModelConfig, TrainConfig
from pspfast.data import CLASSES
from pspfast.evaluation.options import EvalConfig
from pspfast.labelled_data import find_samples
from pspfast.model_files import load_model
from pspfast.recipes import load_recipe, recipe_names
from pspfast.training.data import make_train_set, make_val_set

# semseg's table: crop and base size of the test, epochs.
SEMSEG = {"ade20k": (473, 512, 100), "voc2012": (473, 512, 50), "cityscapes": (713, 2048, 200)}
DATA = {
    "ade20k": DataConfig(source="ade20k", classes="ade20k", labels="ade20k"),
    "voc2012": DataConfig(
        train_list="list/train_aug.txt", val_list="list/val.txt", classes="voc2012"
    ),
    "cityscapes": DataConfig(source="cityscapes", classes="cityscapes", labels="cityscapes_ids"),
}


def printed(args: list[str], capsys: pytest.CaptureFixture[str]) -> Config:
    """The configuration that `pspfast train` would train with."""
    with pytest.raises(SystemExit) as stop:
        main(["train", *args, "--print_config"])
    output = capsys.readouterr()
    assert stop.value.code == 0, output.err
    return Config.from_dict(yaml.safe_load(output.out))


def failure(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The error message of a command that must exit with 2."""
    with pytest.raises(SystemExit) as stop:
        main(args)
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_names() -> None:
    semseg = {f"{data}-r{layers}" for data in SEMSEG for layers in (50, 101)}
    assert recipe_names() == sorted(semseg | {"camvid-r18"})


@pytest.mark.parametrize("layers", [50, 101])
@pytest.mark.parametrize("data", SEMSEG)
def test_semsegs_training(data: str, layers: int, capsys: pytest.CaptureFixture[str]) -> None:
    name = f"{data}-r{layers}"
    crop, _, epochs = SEMSEG[data]
    assert printed(["--recipe", name], capsys) == Config(
        ModelConfig(
            layers=layers,
            bins=(1, 2, 3, 6),
            dropout=0.1,
            zoom_factor=8,
            use_ppm=True,
            pretrained=f"initmodel/resnet{layers}_v2.pth",
            stem="deep",
            dilation="uniform",
            align_corners=True,
            aux_channels=256,
            head_channels=512,
        ),
        DATA[data],
        AugmentConfig((crop, crop), scale=(0.5, 2.0), rotate=10.0, blur=0.5, flip=0.5),
        TrainConfig(
            output=f"runs/{name}",
            epochs=epochs,
            batch_size=16,
            lr=0.01,
            head_lr_factor=10.0,
            momentum=0.9,
            weight_decay=1e-4,
            power=0.9,
            aux_weight=0.4,
            precision="no",
        ),
    )
    assert DATA[data].ignore_index == 255


@pytest.mark.parametrize("layers", [50, 101])
@pytest.mark.parametrize("data", SEMSEG)
def test_semsegs_evaluation(data: str, layers: int) -> None:
    crop, base_size, _ = SEMSEG[data]
    expected = EvalConfig(
        "checkpoint",
        "list",
        protocol="semseg",
        scales=(1.0,),
        flip=True,
        base_size=base_size,
        crop_size=(crop, crop),
    )
    assert EvalConfig("checkpoint", "list", **load_recipe(f"{data}-r{layers}")["eval"]) == expected


def test_camvid(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(["--recipe", "camvid-r18"], capsys) == Config(
        ModelConfig(layers=18, stem="7x7", aux_channels=64, head_channels=128),
        DataConfig(train_list="train.txt", val_list="val.txt", classes="camvid", workers=1),
        AugmentConfig((201, 265), scale=(0.5, 1.0)),
        TrainConfig(
            output="runs/camvid_resnet18",
            epochs=24,
            batch_size=8,
            lr=0.01,
            precision="bf16",
            eval_every=4,
        ),
    )


def test_file_and_options_replace_the_recipe_in_any_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("train: {epochs: 7, lr: 0.5}\n")
    options = ["--config", str(file), "--train.lr", "0.25", "--model.pretrained", "null"]
    recipe = ["--recipe", "cityscapes-r101"]
    for args in (recipe + options, options + recipe, [*options, "--recipe=cityscapes-r101"]):
        config = printed(args, capsys)
        assert (config.train.epochs, config.train.lr, config.model.pretrained) == (7, 0.25, None)
        assert (config.model.layers, config.augment.crop_size) == (101, (713, 713))


def test_wrong_recipes_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = failure(["train", "--recipe", "ade20k-r18"], capsys)
    assert f"expected one of {', '.join(recipe_names())}, got 'ade20k-r18'" in message
    (tmp_path / "config.yaml").write_text("recipe: ade20k-r50\n")
    message = failure(["train", "--config", str(tmp_path / "config.yaml")], capsys)
    assert "recipe: expected as an option, not in a file" in message


def test_help_lists_the_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert f"--recipe NAME Options of a known training run: {', '.join(recipe_names())}" in text


@pytest.fixture
def cityscapes(tmp_path: Path) -> Path:
    """Two training images and one for validation as Cityscapes ships them, with all its ids."""
    root = tmp_path / "cityscapes"
    for split, name in (("train", "ulm_0"), ("train", "ulm_1"), ("val", "bonn_0")):
        image = root / "leftImg8bit" / split / name[:-2] / f"{name}_leftImg8bit.png"
        label = root / "gtFine" / split / name[:-2] / f"{name}_gtFine_labelIds.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        label.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (48, 40), (90, 120, 60)).save(image)
        ids = np.arange(40 * 48).reshape(40, 48) // 8 % 34
        Image.fromarray(ids.astype(np.uint8)).save(label)
    return root


SMALL = [
    *("--model.layers", "18", "--model.stem", "7x7", "--model.pretrained", "null"),
    *("--model.head_channels", "8", "--model.aux_channels", "8", "--augment.crop_size", "[33,41]"),
    *("--train.epochs", "1", "--train.batch_size", "2", "--data.workers", "0"),
]


def test_run_of_a_recipe_learns_train_ids(cityscapes: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    args = ["train", "--recipe", "cityscapes-r50", "--data.root", str(cityscapes), *SMALL]
    main([*args, "--train.output", str(run)])
    for path in (run / "final.safetensors", next(run.glob("checkpoint-*.safetensors"))):
        trained = load_model(path)
        assert trained.class_list == CLASSES["cityscapes"]
        assert trained.config.data.labels == "cityscapes_ids"


def test_training_and_validation_labels_are_train_ids(cityscapes: Path) -> None:
    data = DataConfig(**load_recipe("cityscapes-r50")["data"], root=str(cityscapes))
    augment = AugmentConfig((40, 48), scale=(1.0, 1.0), rotate=0.0, flip=0.0)
    train_set = make_train_set(Config(data=data, augment=augment), 19)
    val_set = make_val_set(data, 19)
    # Rows of 6 runs of 8 pixels with the ids 0 to 33 in turns; of these, the ids 7 and 8 are the
    # classes 0 and 1, and 33 is 18.
    expected = {(0, 0): 255, (1, 8): 0, (1, 16): 1, (5, 24): 18}
    for _, labels in (train_set[0], val_set[0]):
        assert labels.shape == (40, 48)
        assert {place: int(labels[place]) for place in expected} == expected


def test_lists_of_a_recipe_are_found_in_the_root(tmp_path: Path) -> None:
    """As semseg's lists of VOC2012 and its augmented label maps lie there."""
    for folder in ("list", "JPEGImages", "SegmentationClassAug"):
        (tmp_path / folder).mkdir()
    image, label = "JPEGImages/2007_1.jpg", "SegmentationClassAug/2007_1.png"
    (tmp_path / "list" / "train_aug.txt").write_text(f"{image} {label}\n")
    Image.new("RGB", (9, 8)).save(tmp_path / image)
    Image.new("L", (9, 8), 20).save(tmp_path / label)
    data = DataConfig(**load_recipe("voc2012-r101")["data"], root=str(tmp_path))
    assert find_samples(data, "train", 21) == [(tmp_path / image, tmp_path / label)]


def test_wrong_data_of_a_recipe_is_named(
    cityscapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    args = ["train", "--recipe", "cityscapes-r50", *SMALL, "--train.output", str(run)]
    assert "data.root: expected the folder of cityscapes, got none" in failure(args, capsys)
    assert str(tmp_path / "none") in failure([*args, "--data.root", f"{tmp_path}/none"], capsys)
    args += ["--data.root", str(cityscapes)]
    message = failure([*args, "--data.classes", "ade20k"], capsys)
    assert "data.labels: cityscapes_ids is for 19 classes, got 150" in message
    message = failure([*args, "--data.labels", "ids"], capsys)
    assert "ulm_0_gtFine_labelIds.png: the label map holds 19, 20, 21" in message
    assert "data.labels cityscapes_ids takes 0 to 33" in message
    label = cityscapes / "gtFine" / "val" / "bonn" / "bonn_0_gtFine_labelIds.png"
    Image.open(label).point(lambda value: value + 7).save(label)
    assert f"{label}: the label map holds 34, 35, 36, 37, 38, 39, 40;" in failure(args, capsys)
    assert not run.exists()


def test_lists_come_before_the_source(
    cityscapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "list.txt").write_text("gone.png gone_labels.png\n")
    args = ["train", "--recipe", "cityscapes-r50", *SMALL, "--data.root", str(cityscapes)]
    message = failure([*args, "--data.val_list", str(tmp_path / "list.txt")], capsys)
    assert f"{cityscapes / 'gone.png'}: no such file" in message


def test_eval_takes_a_recipes_protocol_which_options_replace() -> None:
    given = ["eval", "--recipe", "cityscapes-r50", "--checkpoint", "x", "--list", "y"]
    recipe, args = take_recipe([*given, "--flip", "false"])
    options = make_parser(recipe).parse_args(args)["eval"]
    assert (options.protocol, options.base_size, options.flip) == ("semseg", 2048, False)

"""Published weights by the commands: converted, predicted with, scored, and trained from."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from randomised import randomised, relative_difference
from small_runs import make_config
from torch import Tensor

from pspfast import PSPNet
from pspfast.cli import main
from pspfast.config import Config, DataConfig, ModelConfig
from pspfast.data import CLASSES
from pspfast.evaluation.evaluate import evaluate_files
from pspfast.evaluation.options import EvalConfig
from pspfast.model_files import load_model
from pspfast.training.trainer import train

SMALL = {"layers": 18, "stem": "7x7", "head_channels": 8, "aux_channels": 8}
CONFIG = """
norm_cfg = dict(type='SyncBN', requires_grad=True)
crop_size = (33, 41)
data_preprocessor = dict(mean=[10.2, 20.4, 30.6], std=[51.0, 102.0, 25.5], bgr_to_rgb=False)
model = dict(
    type='EncoderDecoder',
    data_preprocessor=data_preprocessor,
    backbone=dict(type='ResNet', depth=18, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4),
                  contract_dilation=True, norm_cfg=norm_cfg, unknown=__import__('os').name),
    decode_head=dict(type='PSPHead', pool_scales=(1, 2, 3, 6), align_corners=True,
                     dropout_ratio=0.2),
    test_cfg=dict(mode='slide', crop_size=(65, 57), stride=(43, 38)))
"""


def as_mmseg(model: PSPNet) -> dict[str, Tensor]:
    names = {
        "layer0.0": "backbone.conv1",
        "layer0.1": "backbone.bn1",
        "cls.0": "decode_head.bottleneck.conv",
        "cls.1": "decode_head.bottleneck.bn",
        "cls.4": "decode_head.conv_seg",
        "aux.0": "auxiliary_head.convs.0.conv",
        "aux.1": "auxiliary_head.convs.0.bn",
        "aux.4": "auxiliary_head.conv_seg",
    }
    for i in range(4):
        names[f"ppm.features.{i}.1"] = f"decode_head.psp_modules.{i}.1.conv"
        names[f"ppm.features.{i}.2"] = f"decode_head.psp_modules.{i}.1.bn"
    state = {}
    for key, value in model.state_dict().items():
        module, _, parameter = key.rpartition(".")
        state[f"{names.get(module, f'backbone.{module}')}.{parameter}"] = value
    return state


@pytest.fixture
def model(data_root: Path) -> PSPNet:
    options = {"dilation": "contracted", "block_dilation": "first", "dropout": 0.2}
    model = randomised(PSPNet(classes=3, **SMALL, **options)).eval()
    # So that it sees each class somewhere.
    with torch.no_grad():
        logits = model(normalised(np.asarray(Image.open(data_root / "images" / "1.png"))))
        model.cls[4].bias -= logits.mean((0, 2, 3))
    return model


def normalised(pixels: np.ndarray) -> Tensor:
    """As the configuration says."""
    image = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float().div(255).flip(0)
    mean, std = torch.tensor([0.04, 0.08, 0.12]), torch.tensor([0.2, 0.4, 0.1])
    return ((image - mean[:, None, None]) / std[:, None, None])[None]


@pytest.fixture
def foreign(model: PSPNet, tmp_path: Path) -> Path:
    meta = {"cfg": CONFIG, "dataset_meta": {"classes": ("a", "b", "c")}}
    path = tmp_path / "iter_80000.pth"
    torch.save({"meta": meta, "state_dict": as_mmseg(model)}, path)
    return path


def test_what_the_configuration_says(model: PSPNet, foreign: Path) -> None:
    got = PSPNet.from_pretrained(foreign)
    assert got.options == model.options | {"ppm_channels": 128}
    assert not got.training
    assert got.preprocessing.channel_order == "bgr"
    assert got.preprocessing.mean == pytest.approx((0.04, 0.08, 0.12))
    assert got.preprocessing.std == pytest.approx((0.2, 0.4, 0.1))
    report = str(got.origin)
    assert "iter_80000.pth: mmsegmentation's PSPNet" in report
    for line in (
        r"align_corners   True  (the file's configuration)",
        "layers          18  (shapes)",
        "block_dilation  first  (mmsegmentation)",
        "bgr scaled to 0..1, mean [0.04, 0.08, 0.12]",
    ):
        assert line in report, report
    images = torch.randn(1, 3, 49, 65)
    assert torch.equal(got(images), model(images))
    loaded = load_model(foreign)
    assert loaded.config.augment.crop_size == (65, 57)
    assert loaded.class_list.names == ("a", "b", "c")


def test_options_that_the_weights_contradict(foreign: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^from_pretrained: head_channels: expected 8 as .*pth"):
        PSPNet.from_pretrained(foreign, head_channels=16)
    with pytest.raises(ValueError, match=r"iter_80000\.pth: PSPNet: zoom_factor: expected one of"):
        PSPNet.from_pretrained(foreign, zoom_factor=3)
    assert not PSPNet.from_pretrained(foreign, align_corners=False).align_corners
    contents = torch.load(foreign)
    for old, new, message in (
        ("(1, 2, 1, 1)", "(1, 2, 2, 1)", "output_stride: expected strides and dilations"),
        ("depth=18", "depth=18, style='caffe'", "got style caffe"),
    ):
        text = CONFIG.replace(old, new)
        torch.save({**contents, "meta": {"cfg": text}}, tmp_path / "other.pth")
        with pytest.raises(ValueError, match=f"^.*other.pth: .*{message}"):
            PSPNet.from_pretrained(tmp_path / "other.pth")
    torch.save(contents["state_dict"], tmp_path / "bare.pth")
    with pytest.raises(ValueError, match=r"align_corners: .*bare\.pth does not tell it; give"):
        PSPNet.from_pretrained(tmp_path / "bare.pth")
    assert PSPNet.from_pretrained(tmp_path / "bare.pth", align_corners=True).align_corners


@pytest.mark.parametrize("is_converted", [False, True])
def test_predict_and_eval(
    model: PSPNet,
    foreign: Path,
    data_root: Path,
    is_converted: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    checkpoint = foreign
    if is_converted:
        checkpoint = foreign.parent / "model.safetensors"
        main(["convert", str(foreign), "--output", str(checkpoint)])
        assert "(the file's configuration)" in capsys.readouterr().out
    image = data_root / "images" / "1.png"
    main(["predict", str(image), "--checkpoint", str(checkpoint), "--output", "out"])
    pixels = np.asarray(Image.open(image))
    got = np.asarray(Image.open("out/1_labels.png"))
    expected = model.predict(normalised(pixels))[0].numpy()
    assert (got == expected).mean() > 0.999
    # The order of the channels matters here.
    wrong = model.predict(normalised(pixels[..., ::-1]))[0].numpy()
    assert (got == wrong).mean() < 0.95

    scores, classes = evaluate_files(
        EvalConfig(str(checkpoint), list=str(data_root / "val.txt"), workers=0)
    )
    assert classes.names == ("a", "b", "c")
    counts = np.zeros((3, 3))
    for i in (0, 1):
        labels = np.asarray(Image.open(data_root / "labels" / f"{i}.png"))
        pixels = np.asarray(Image.open(data_root / "images" / f"{i}.png"))
        predicted = model.predict(normalised(pixels))[0].numpy()
        np.add.at(counts, (labels[labels < 3], predicted[labels < 3]), 1)
    assert np.abs(scores.confusion.numpy() - counts).sum() <= 4


def test_converted_options_are_given(model: PSPNet, tmp_path: Path) -> None:
    torch.save(model.state_dict(), tmp_path / "bare.pth")
    given = ["--align_corners", "false", "--dilation", "contracted", "--block_dilation", "both"]
    target = tmp_path / "folder" / "m.safetensors"
    main(["convert", str(tmp_path / "bare.pth"), "--output", str(target), *given])
    options = PSPNet.from_pretrained(target).options
    assert not options["align_corners"]
    assert (options["dilation"], options["block_dilation"]) == ("contracted", "both")
    with pytest.raises(SystemExit):
        main(["convert", str(tmp_path / "bare.pth"), "--output", "m.pth", *given])
    assert not Path("m.pth").exists()


def fine_tuning(data_root: Path, tmp_path: Path, weights: Path, **options: object) -> Config:
    config = make_config(data_root, tmp_path / "tuned")
    run = {"dilation": "contracted", "block_dilation": "first", **options}
    return replace(
        config,
        model=ModelConfig(**SMALL, **run, weights=str(weights)),
        data=replace(
            config.data, mean=(0.04, 0.08, 0.12), std=(0.2, 0.4, 0.1), channel_order="bgr"
        ),
        train=replace(config.train, epochs=1),
    )


@pytest.mark.parametrize("is_frozen", [False, True])
def test_training_starts_from_other_classes(
    model: PSPNet, foreign: Path, data_root: Path, tmp_path: Path, is_frozen: bool
) -> None:
    contents = torch.load(foreign)
    for key in [k for k in contents["state_dict"] if "conv_seg" in k]:
        contents["state_dict"][key] = contents["state_dict"][key][:2]
    contents["meta"]["dataset_meta"]["classes"] = ("a", "b")
    torch.save(contents, foreign)
    config = fine_tuning(data_root, tmp_path, foreign)
    config.train.freeze_backbone = is_frozen
    with pytest.warns(
        UserWarning,
        match=r"^model\.weights: .*iter_80000\.pth has 2 classes, this network 3: layers that "
        r"start anew: aux\.4, cls\.4",
    ):
        train(config)
    tuned = load_model(tmp_path / "tuned" / "final.safetensors")
    assert tuned.model.preprocessing.channel_order == "bgr"
    got, start = tuned.model.state_dict(), model.state_dict()
    backbone = [key for key in start if key.startswith("layer")]
    same = [torch.equal(got[key], start[key]) for key in backbone]
    assert all(same) if is_frozen else not any(same)
    heads = [key for key in start if not key.startswith("layer")]
    assert not any(torch.equal(got[key], start[key]) for key in heads)


def test_training_refuses_what_does_not_fit(foreign: Path, data_root: Path, tmp_path: Path) -> None:
    for options, message in (
        ({"align_corners": False}, r"align_corners True, this run has False: give --model.align_c"),
        ({"dilation": "uniform"}, r"dilation contracted, this run has uniform"),
        ({"head_channels": 16}, r"cls\.0\.weight: expected \(16, 1024, 3, 3\), got \(8, 1024"),
    ):
        config = fine_tuning(data_root, tmp_path, foreign)
        for name, value in options.items():
            setattr(config.model, name, value)
        with pytest.raises(ValueError, match=rf"^model\.weights: .*iter_80000\.pth .*{message}"):
            train(config)
    config = fine_tuning(data_root, tmp_path, foreign)
    config.data = replace(config.data, mean=DataConfig().mean)
    with pytest.raises(ValueError, match=r"expects images prepared by .* give --data\.mean"):
        train(config)


def test_python_fine_tuning(foreign: Path) -> None:
    with pytest.warns(UserWarning, match="has 3 classes, this network 7"):
        model = PSPNet.from_pretrained(foreign, classes=7)
    assert model.class_names is None
    model.freeze_backbone().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    _, loss, aux = model(torch.randn(2, 3, 41, 41), torch.randint(0, 7, (2, 41, 41)))
    (loss + aux).backward()
    optimizer.step()
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]) == key.startswith("layer"), key
    assert not model.layer1[0].bn1.training
    assert model.cls[1].training


def test_published_classes_have_names(tmp_path: Path) -> None:
    """Without names in the file, as many classes as semseg's published files have mean those."""
    with torch.device("meta"):
        meta = PSPNet(50, classes=150).state_dict()
    state = {k: torch.zeros(v.shape, dtype=v.dtype).half() for k, v in meta.items()}
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "a.pth")
    loaded = load_model(tmp_path / "a.pth")
    assert loaded.class_list == CLASSES["ade20k"]
    assert loaded.config.augment.crop_size == (473, 473)
    assert loaded.model.cls[4].weight.dtype == torch.float32


def test_relative_difference_sees_a_wrong_guess(model: PSPNet, foreign: Path) -> None:
    """Conventions that leave no trace in weights change the numbers."""
    images = torch.randn(1, 3, 65, 65)
    for wrong in ({"align_corners": False}, {"dilation": "uniform"}, {"block_dilation": "both"}):
        other = PSPNet.from_pretrained(foreign, **wrong)
        assert relative_difference(other(images), model(images)) > 1e-3

"""The demo: a small model learns drawn scenes in minutes."""

from __future__ import annotations

import shlex
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from pspfast.config import (
    AugmentConfig,
    Config,
    DataConfig,
    ModelConfig,
    TrainConfig,
)
from pspfast.data import CLASSES, EvalTransform, SceneDataset, colorize, overlay
from pspfast.demo.options import DemoConfig
from pspfast.prediction.outputs import save_pictures
from pspfast.scores import Scores
from pspfast.training.data import make_train_transform
from pspfast.training.interrupt import TrainingInterrupted
from pspfast.training.log import read_log
from pspfast.training.trainer import Trainer

_TRAIN_SCENES, _VAL_SCENES, _SHOWN = 160, 40, 4
_SIZE = 129, 161  # 8n+1, where align_corners puts the features exactly at their pixels


def demo(options: DemoConfig) -> Scores:
    """Trains, then writes pictures of scenes that the model has not seen, and the training curve.

    Raises:
        TrainingInterrupted: a signal stopped it.
    """
    folder = Path(options.output)
    val_set = unseen_scenes()
    trainer = make_trainer(options, val_set)
    print(f"training a ResNet-18 PSPNet on {_TRAIN_SCENES} drawn scenes on {trainer.device}")
    try:
        scores = trainer.fit() or trainer.validate(val_set)
    except TrainingInterrupted as stop:
        again = shlex.join(["pspfast", "demo", "--output", options.output, "--resume", "true"])
        raise TrainingInterrupted(stop.checkpoint, again) from None

    _save_scenes(folder, trainer, val_set)
    _save_curve(folder / "curve.png", folder / "run")
    print(
        f"\n{scores.table(trainer.class_list.names)}\n"
        f"mIoU {scores.mean_iou:.3f} on {_VAL_SCENES} scenes that were not in training\n\n"
        f"{folder / 'scenes.png'}: image, truth, prediction and overlay of {_SHOWN} of them\n"
        f"{folder / 'curve.png'}: the training curve\n"
        f"{folder / 'scene-0_overlay.png'}, ...: the same pictures one by one\n"
        f"{model_file(options)}: the model, for pspfast predict --checkpoint"
    )
    return scores


def model_file(options: DemoConfig) -> Path:
    """Where the demo writes its model."""
    return Path(options.output) / "run" / "final.safetensors"


def unseen_scenes() -> SceneDataset:
    """Scenes that the demo does not train on."""
    return SceneDataset(_VAL_SCENES, _SIZE, seed=1, transform=EvalTransform())


def make_trainer(options: DemoConfig, val_set: SceneDataset) -> Trainer:
    """The run of the demo; raises as ``Trainer``."""
    config = demo_config(options)
    train_set = SceneDataset(_TRAIN_SCENES, _SIZE, seed=0, transform=make_train_transform(config))
    return Trainer(config, train_set, val_set, CLASSES["scenes"])


def demo_config(options: DemoConfig) -> Config:
    """What the demo trains: small enough for two CPU cores."""
    if torch.cuda.is_available():
        fast_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast_bf16 = torch.cpu._is_avx512_bf16_supported()
    return Config(
        ModelConfig(layers=18, stem="7x7", head_channels=128, aux_channels=64),
        DataConfig(classes="scenes", workers=1),
        AugmentConfig(crop_size=(97, 129), scale=(0.75, 1.5)),
        TrainConfig(
            output=str(Path(options.output) / "run"),
            epochs=options.epochs,
            batch_size=8,
            lr=0.02,
            precision="bf16" if fast_bf16 else "no",
            save_every=5,
            resume="auto" if options.resume else None,
            overwrite=True,
        ),
    )


def _save_scenes(folder: Path, trainer: Trainer, scenes: SceneDataset) -> None:
    class_list = trainer.class_list
    figure = Figure(figsize=(10, 2 * _SHOWN + 0.6), layout="constrained")
    rows = figure.subplots(_SHOWN, 4, squeeze=False)
    for index, axes in enumerate(rows):
        pixels, labels, predicted = trainer.segment(scenes, index)
        stem = folder / f"scene-{index}"
        save_pictures(stem, pixels, predicted, class_list)
        pictures = {
            "image": pixels,
            "truth": colorize(labels, class_list),
            "prediction": colorize(predicted, class_list),
            "overlay": overlay(pixels, predicted, class_list),
        }
        for name in ("image", "truth"):
            Image.fromarray(pictures[name]).save(f"{stem}_{name}.png")
        for axis, (name, picture) in zip(axes, pictures.items(), strict=True):
            axis.imshow(picture)
            axis.set_axis_off()
            if index == 0:
                axis.set_title(name)
    patches = [
        Patch(color="#{:02x}{:02x}{:02x}".format(*colour), label=name)
        for name, colour in zip(class_list.names, class_list.palette, strict=True)
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), fontsize=8)
    figure.savefig(folder / "scenes.png", dpi=100)


def _save_curve(path: Path, run: Path) -> None:
    records = read_log(run)
    epochs = [record["epoch"] for record in records]
    figure = Figure(figsize=(6, 4), layout="constrained")
    loss = figure.subplots()
    loss.plot(epochs, [record["loss"] for record in records], color="tab:gray", label="loss")
    loss.set(xlabel="epoch", ylabel="training loss")
    iou = loss.twinx()
    iou.plot(epochs, [r["train_mIoU"] for r in records], "--", color="tab:blue", label="training")
    iou.plot(epochs, [r["mIoU"] for r in records], color="tab:blue", label="unseen scenes")
    iou.set(ylabel="mIoU", ylim=(0, 1))
    iou.legend(loc="center right")
    figure.savefig(path, dpi=100)

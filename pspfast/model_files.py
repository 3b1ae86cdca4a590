"""Models from configurations and from files, and trained weights in safetensors files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pspfast.config import AugmentConfig, Config, DataConfig, ModelConfig
from pspfast.data import ClassList, EvalTransform
from pspfast.models import PSPNet
from pspfast.published.found import Found
from pspfast.published.loading import find, load, take_weights
from pspfast.published.own import class_list_of, preprocessing_of, write_model


@dataclass
class TrainedModel:
    """A model in evaluation mode, with what its training settled."""

    model: PSPNet
    config: Config
    class_list: ClassList


def build_model(config: Config, classes: int) -> PSPNet:
    """The network of a configuration.

    Args:
        config: its model section and its ``data.ignore_index`` count.
        classes: K.
    """
    options = dict(vars(config.model))
    weights = options.pop("weights")
    model = PSPNet(
        classes=classes,
        criterion=nn.CrossEntropyLoss(ignore_index=config.data.ignore_index),
        pretrained=options.pop("pretrained") or False,
        **options,
    )
    if weights:
        _start_from(model, config)
    return model


def _start_from(model: PSPNet, config: Config) -> None:
    """Gives a model the weights of a trained one, but for classifiers of other classes, of which it
    warns.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or of a network with other layers, widths or conventions,
            or was trained on images prepared otherwise.
    """
    found = find(str(config.model.weights))
    if found.is_backbone:
        raise ValueError(
            f"model.weights: {found.name} is a classifier of images; give it as model.pretrained"
        )
    run = vars(config.model)
    # What differs in number of layers or in widths names itself when it is loaded.
    for name in ("align_corners", "dilation", "bins", "output_stride", "block_dilation"):
        is_settled = name != "block_dilation" or config.model.layers < 50
        if is_settled and found.options.get(name, run[name]) != run[name]:
            raise ValueError(
                f"model.weights: {found.name} is of a network with {name} {found.options[name]}, "
                f"this run has {run[name]}: give --model.{name}"
            )
    prepared = preprocessing_of(config.data)
    if found.preprocessing != prepared:
        raise ValueError(
            f"model.weights: {found.name} expects images prepared by {found.preprocessing}, this "
            f"run prepares them by {prepared}: give --data.mean, --data.std and "
            "--data.channel_order"
        )
    take_weights(model, found, "model.weights")


def save_weights(
    path: Path,
    weights: dict[str, Tensor],
    config: Config,
    class_list: ClassList,
    note: dict[str, Any],
) -> None:
    """Writes a safetensors file from which ``load_model`` rebuilds the model by itself.

    Args:
        path: file to write.
        weights: state_dict of the PSPNet.
        config: options of the run.
        class_list: the classes.
        note: what else to keep, such as iteration and scores.
    """
    write_model(path, weights, config, class_list, note)


def load_model(source: str | Path | Sequence[str], **options: Any) -> TrainedModel:
    """Rebuilds a model from weights that a training run wrote, or those of a published PSPNet.

    Args:
        source: a file, a folder, two files, or a name on the Hub; see ``PSPNet.from_pretrained``.
        options: of PSPNet, which published weights may not tell.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, of another network, or of a version whose options are
            others; or an option must be given.
    """
    found = find(source)
    try:
        model = load(PSPNet, found, options)
    except TypeError as error:
        raise ValueError(
            f"{found.name}: not written by this version of pspfast: {error}"
        ) from error
    class_list = class_list_of(model.class_names, model.palette, model.classes)
    return TrainedModel(model, found.config or _config_of(model, found), class_list)


def _config_of(model: PSPNet, found: Found) -> Config:
    """A configuration of published weights, for what their files say."""
    options = {name: value for name, value in model.options.items() if name != "classes"}
    processing = model.preprocessing
    data = DataConfig(
        classes=found.class_list or model.classes,
        labels=found.label_ids,
        mean=processing.mean,
        std=processing.std,
        channel_order=processing.channel_order,
    )
    augment = AugmentConfig()
    if found.crop_size:
        augment = AugmentConfig(crop_size=found.crop_size)
    return Config(model=ModelConfig(**options), data=data, augment=augment)


def eval_transform(trained: TrainedModel) -> EvalTransform:
    """What images of files go through before the model sees them.

    Raises:
        ValueError: the model's images have no three channels.
    """
    if trained.model.in_channels != 3:
        raise ValueError(
            f"in_channels: expected a model of images with 3 channels, as files have, got one of "
            f"{trained.model.in_channels}"
        )
    processing = trained.model.preprocessing
    return EvalTransform(processing.mean, processing.std, channel_order=processing.channel_order)

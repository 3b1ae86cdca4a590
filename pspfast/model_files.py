"""Models from configurations and from files, and trained weights in safetensors files."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pspfast.config import Config
from pspfast.data import ClassList
from pspfast.files import read_tensors, write_tensors
from pspfast.models import PSPNet


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
    return PSPNet(
        classes=classes,
        criterion=nn.CrossEntropyLoss(ignore_index=config.data.ignore_index),
        pretrained=options.pop("pretrained") or False,
        **options,
    )


def describe_class_list(class_list: ClassList) -> dict[str, Any]:
    """Plain lists, as a JSON file gives them back."""
    return json.loads(json.dumps(asdict(class_list)))


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
    header = {"config": config.to_dict(), "taxonomy": describe_class_list(class_list), **note}
    write_tensors(path, weights, header)


def load_model(path: str | Path) -> TrainedModel:
    """Rebuilds a model from the weights or a checkpoint that a training run wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file was not written by ``pspfast train``, or is damaged.
    """
    path = Path(path)
    tensors, header = read_tensors(path)
    # A checkpoint holds the state of the optimizer besides.
    weights = {
        name.removeprefix("model/"): value
        for name, value in tensors.items()
        if name.startswith("model/")
    } or tensors
    config = Config.from_dict(header["config"])
    config.model.pretrained = None
    names, palette = header["taxonomy"]["names"], header["taxonomy"]["palette"]
    class_list = ClassList(tuple(names), tuple((r, g, b) for r, g, b in palette))
    model = build_model(config, len(names))
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{path}: the weights do not fit the configuration: {error}") from error
    return TrainedModel(model.eval(), config, class_list)

"""Models from configurations and from files, and trained weights in safetensors files."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pspfast.config import Config
from pspfast.data import ClassList
from pspfast.data.search import listed
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
    weights = options.pop("weights")
    model = PSPNet(
        classes=classes,
        criterion=nn.CrossEntropyLoss(ignore_index=config.data.ignore_index),
        pretrained=options.pop("pretrained") or False,
        **options,
    )
    if weights:
        _start_from(model, Path(weights))
    return model


def _start_from(model: PSPNet, path: Path) -> None:
    """Gives a model the weights of a trained one, but for classifiers of other classes, of which it
    warns.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file was not written by ``pspfast train``, is damaged, or is of a network
            with other layers or widths.
    """
    weights, _ = _read_weights(path)
    own = model.state_dict()
    classifiers = [f"{head}.4.{name}" for head in ("cls", "aux") for name in ("weight", "bias")]
    anew = [
        name for name in classifiers if name in weights and weights[name].shape != own[name].shape
    ]
    kept = {name: value for name, value in weights.items() if name not in anew}
    different = sorted(
        name
        for name in own.keys() | kept.keys()
        if name not in anew
        and (name not in own or name not in kept or own[name].shape != kept[name].shape)
    )
    if different:
        raise ValueError(
            f"model.weights: {path} is of another network; layers that differ: "
            f"{listed(different, 8)}"
        )
    model.load_state_dict(kept, strict=False)
    if anew:
        warnings.warn(
            f"model.weights: {path} has {len(weights[anew[0]])} classes, this run {model.classes}: "
            f"the classifiers start anew ({', '.join(anew)})",
            stacklevel=3,
        )


def _read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state_dict and the header of a file that a training run wrote; raises as
    ``read_tensors``."""
    tensors, header = read_tensors(path)
    # A checkpoint holds the state of the optimizer besides.
    weights = {
        name.removeprefix("model/"): value
        for name, value in tensors.items()
        if name.startswith("model/")
    }
    return weights or tensors, header


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
        ValueError: the file was not written by ``pspfast train``, is damaged, or of a version whose
            options are others.
    """
    path = Path(path)
    weights, header = _read_weights(path)
    try:
        config = Config.from_dict(header["config"])
        config.model.pretrained = config.model.weights = None
        names, palette = header["taxonomy"]["names"], header["taxonomy"]["palette"]
        class_list = ClassList(tuple(names), tuple((r, g, b) for r, g, b in palette))
        model = build_model(config, len(names))
    # Options of another version are missing, unknown, of another type or out of range.
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{path}: not written by this version of pspfast train: {type(error).__name__}: {error}"
        ) from error
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{path}: the weights do not fit the configuration: {error}") from error
    return TrainedModel(model.eval(), config, class_list)

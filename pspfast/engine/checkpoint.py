"""Checkpoints and weights on disk, written whole or not at all."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor, nn

from pspfast.data import Taxonomy
from pspfast.engine.config import Config
from pspfast.models import PSPNet


@dataclass
class TrainedModel:
    """A model with what its training settled."""

    model: PSPNet
    config: Config
    taxonomy: Taxonomy


def build_model(config: Config, classes: int, pretrained: bool = True) -> PSPNet:
    """The network of a configuration.

    Args:
        config: all options of the run.
        classes: K.
        pretrained: whether ``config.model.pretrained`` is loaded.
    """
    options = dict(vars(config.model))
    path = options.pop("pretrained")
    return PSPNet(
        classes=classes,
        criterion=nn.CrossEntropyLoss(ignore_index=config.data.ignore_index),
        pretrained=path if pretrained and path else False,
        **options,
    )


@contextmanager
def atomic_open(path: Path) -> Iterator[BinaryIO]:
    """Opens a file for writing that appears under its name complete, or keeps what was there."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_checkpoint(folder: Path, state: dict[str, Any], keep: int) -> Path:
    """Writes ``checkpoint-<iteration>.pt`` and removes all but the newest ``keep``.

    Args:
        folder: where to.
        state: tensors, containers, strings and numbers; its ``"iteration"`` names the file.
        keep: number of checkpoints that stay.
    """
    path = folder / f"checkpoint-{state['iteration']:08d}.pt"
    with atomic_open(path) as file:
        torch.save(state, file)
    for old in list_checkpoints(folder)[:-keep]:
        old.unlink()
    return path


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted(folder.glob("checkpoint-*.pt"))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The state that ``save_checkpoint`` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no checkpoint of a training run.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise ValueError(f"{path}: not a readable checkpoint: {_first_line(error)}") from error
    if not isinstance(state, dict) or not {"model", "config", "taxonomy"} <= state.keys():
        raise ValueError(f"{path}: expected a checkpoint of pspfast train, got another torch file")
    return state


def describe_taxonomy(taxonomy: Taxonomy) -> dict[str, list[Any]]:
    """Plain lists of a taxonomy, for checkpoints."""
    palette = [[int(value) for value in colour] for colour in taxonomy.palette]
    return {"names": list(taxonomy.names), "palette": palette}


def save_weights(
    path: Path, weights: dict[str, Tensor], config: Config, taxonomy: Taxonomy, note: dict[str, Any]
) -> None:
    """Writes a safetensors file from which ``load_model`` rebuilds the model by itself.

    Args:
        path: file to write.
        weights: state_dict of the PSPNet.
        config: options of the run.
        taxonomy: the classes.
        note: what else to keep, such as the iteration and the scores.
    """
    header = {"config": config.to_dict(), "taxonomy": describe_taxonomy(taxonomy), **note}
    tensors = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    with atomic_open(path) as file:
        file.write(serialize(tensors, metadata={"pspfast": json.dumps(header)}))


def load_model(path: str | Path) -> TrainedModel:
    """Rebuilds a model, in evaluation mode, from a ``.safetensors`` or checkpoint file of a run.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file was not written by ``pspfast train``.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    if path.suffix == ".safetensors":
        weights, header = _read_safetensors(path)
    else:
        header = load_checkpoint(path)
        weights = header["model"]
    config = Config.from_dict(header["config"])
    taxonomy = make_taxonomy(header["taxonomy"])
    model = build_model(config, len(taxonomy.names), pretrained=False)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{path}: the weights do not fit the configuration: {error}") from error
    return TrainedModel(model.eval(), config, taxonomy)


def make_taxonomy(described: dict[str, list[Any]]) -> Taxonomy:
    """The inverse of ``describe_taxonomy``."""
    return Taxonomy(
        names=tuple(described["names"]),
        palette=tuple(tuple(colour) for colour in described["palette"]),
    )


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path}: not a readable safetensors file: {error}") from error
    if "pspfast" not in metadata:
        raise ValueError(f"{path}: expected weights of pspfast train, got another safetensors file")
    return weights, json.loads(metadata["pspfast"])


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]

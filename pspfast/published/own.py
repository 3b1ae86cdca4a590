"""This project's own files: safetensors with a header from which the model is rebuilt."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pspfast.published.found import Found, Palette
from pspfast.published.preprocessing import Preprocessing
from pspfast.published.reading import WeightsFile

if TYPE_CHECKING:
    from pspfast.config import Config, DataConfig


def recognise(file: WeightsFile) -> bool:
    """Whether a file has such a header."""
    return "pspfast" in file.header


def convert(file: WeightsFile) -> Found:
    """What the header says, and the weights; of a checkpoint without the optimizer's state.

    Raises:
        ValueError: the file is damaged, or of a version whose options are others.
    """
    from pspfast.config import Config
    from pspfast.files import read_tensors

    tensors, header = read_tensors(file.path)
    weights = {
        name.removeprefix("model/"): value
        for name, value in tensors.items()
        if name.startswith("model/")
    }
    try:
        config = Config.from_dict(header["config"])
        names = tuple(map(str, header["taxonomy"]["names"]))
        palette = tuple((r, g, b) for r, g, b in header["taxonomy"]["palette"])
        if len(names) != len(palette):
            raise ValueError(f"{len(names)} classes have {len(palette)} colours")
        found = Found("pspfast", (file.path,), weights or tensors)
        found.preprocessing = preprocessing_of(config.data)
    # Options of another version are missing, unknown, of another type or out of range.
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{file.path}: not written by this version of pspfast: {type(error).__name__}: {error}"
        ) from error
    config.model.pretrained = config.model.weights = None
    options = dict(vars(config.model))
    del options["pretrained"], options["weights"]
    found.note("the file", classes=len(names), **options)
    found.class_names, found.palette, found.config = names, palette, config
    found.sources["class_names"] = found.sources["preprocessing"] = "the file"
    found.ignore_index = config.data.ignore_index
    return found


def write_model(
    path: Path,
    weights: dict[str, Tensor],
    config: Config,
    class_list: Any,
    note: dict[str, Any],
) -> None:
    """Writes a file from which the model can be rebuilt.

    Args:
        path: of the file.
        weights: state_dict.
        config: of the model; its other sections are kept.
        class_list: the classes, with names and palette.
        note: what else to keep.
    """
    from pspfast.files import write_tensors

    header = {"config": config.to_dict(), "taxonomy": describe_class_list(class_list), **note}
    write_tensors(path, weights, header)


def describe_class_list(class_list: Any) -> dict[str, Any]:
    """Plain lists, as a JSON file gives them back."""
    return json.loads(json.dumps(asdict(class_list)))


def preprocessing_of(data: DataConfig) -> Preprocessing:
    """That of a configuration."""
    return Preprocessing(data.mean, data.std, data.channel_order)


def class_list_of(names: tuple[str, ...] | None, palette: Palette | None, classes: int) -> Any:
    """A class list of names and colours, generic ones where there are none."""
    from pspfast.data import ClassList

    generic = ClassList.generic(classes)
    return ClassList(names or generic.names, palette or generic.palette)

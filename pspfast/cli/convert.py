"""``pspfast convert``: published weights as a file of this project."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal


@dataclass
class ConvertConfig:
    """The file that is written, and what the weights may not tell."""

    output: str = "model.safetensors"
    """File to write, .safetensors; pspfast predict, eval and train read it."""
    align_corners: bool | None = None
    """align_corners of the network; the default is what the file or its family says."""
    dilation: Literal["uniform", "contracted"] | None = None
    """Dilation of the first block of a dilated stage; likewise."""
    block_dilation: Literal["both", "first"] | None = None
    """Which convolutions of a dilated ResNet-18 or 34 block dilate; likewise."""
    bins: tuple[int, ...] | None = None
    """Bins of each pyramid level; likewise."""

    def __post_init__(self) -> None:
        if Path(self.output).suffix != ".safetensors":
            raise ValueError(f"output: expected a name ending in .safetensors, got {self.output}")


def convert(files: list[str], options: ConvertConfig) -> str:
    """Writes the file, and returns a report: what was found and what it follows from.

    Raises:
        FileNotFoundError, ValueError: as of ``PSPNet.from_pretrained``; nothing is written then.
        OSError: the file cannot be written.
    """
    from pspfast.model_files import load_model, save_weights

    given: dict[str, Any] = {
        name: value
        for name, value in vars(options).items()
        if name != "output" and value is not None
    }
    trained = load_model(files, **given)
    path = Path(options.output)
    path.parent.mkdir(parents=True, exist_ok=True)
    report = str(trained.model.origin)
    weights = trained.model.state_dict()
    save_weights(path, weights, trained.config, trained.class_list, {"origin": report})
    return f"{report}\nwritten: {path}"

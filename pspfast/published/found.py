"""What was found in a file of weights, and from what it follows."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from pspfast.published.preprocessing import IMAGENET, Preprocessing

if TYPE_CHECKING:
    from pspfast.config import Config

Palette = tuple[tuple[int, int, int], ...]


@dataclass
class Found:
    """Weights under this project's names, the options of their network, and the rest of what a file
    tells.

    Attributes:
        family: who wrote the file.
        paths: of the files.
        weights: the state_dict.
        options: of ``PSPNet``.
        sources: of each option, and of what else was found: from what it follows.
        preprocessing: of the images.
        class_names: of the K classes, where known.
        palette: their RGB colours, likewise.
        class_list: name of a built-in list of classes that has both.
        crop_size: height and width of the windows in evaluation, where known.
        label_ids: what published label files hold, see ``data.labels``.
        ignore_index: label that is not trained.
        is_backbone: whether these are a classifier's weights: of ``layer0`` to ``layer4`` only.
        config: all options of the run that wrote one of this project's files.
    """

    family: str
    paths: tuple[Path, ...]
    weights: dict[str, Tensor]
    options: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    preprocessing: Preprocessing = IMAGENET
    class_names: tuple[str, ...] | None = None
    palette: Palette | None = None
    class_list: str | None = None
    crop_size: tuple[int, int] | None = None
    label_ids: Literal["ids", "ade20k"] = "ids"
    ignore_index: int = 255
    is_backbone: bool = False
    config: Config | None = None

    @property
    def name(self) -> str:
        """The files, for messages."""
        return " and ".join(map(str, self.paths))

    def note(self, source: str, **options: Any) -> None:
        """Takes options that follow from a source; those that a better source gave stay."""
        for name, value in options.items():
            if name not in self.options:
                self.options[name], self.sources[name] = value, source

    def report(self) -> str:
        """A line for each option: its value and what it follows from."""
        shown = {name: str(value) for name, value in self.options.items()}
        processing = self.preprocessing
        shown["preprocessing"] = (
            f"{processing.channel_order} scaled to 0..1, mean {_short(processing.mean)}, "
            f"std {_short(processing.std)}"
        )
        shown["class_names"] = self.class_list or "none"
        if self.class_names:
            shown["class_names"] = f"{len(self.class_names)}: {', '.join(self.class_names[:4])}, …"
        width = max(map(len, shown))
        lines = [f"{self.name}: {self.family}"]
        for name, value in shown.items():
            lines.append(f"  {name:{width}}  {value}  ({self.sources.get(name, 'default')})")
        return "\n".join(lines)


def _short(values: tuple[float, ...]) -> str:
    return "[" + ", ".join(f"{value:.4g}" for value in values) + "]"

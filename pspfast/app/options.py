"""Options of ``pspfast app``."""

from __future__ import annotations

from dataclasses import dataclass

from pspfast.config import at_least


@dataclass
class AppConfig:
    """The model, and where the page is."""

    checkpoint: str | None = None
    """File of a training run: best.safetensors, final.safetensors or a checkpoint; or of semseg or
    mmsegmentation, a folder of save_pretrained, or a name on the Hub. The default is the model of
    pspfast demo, which the page trains where there is none."""
    demo: str = "pspfast-demo"
    """Folder of the demo's model."""
    epochs: int = 12
    """Passes over the training scenes where the page trains the demo's model."""
    host: str = "127.0.0.1"
    """Address that the page is served at: this machine alone; 0.0.0.0 lets others in, without a
    password."""
    port: int | None = None
    """Port of the page; the default is the first free one from 7860."""
    crop_size: tuple[int, int] | None = None
    """Height and width of windows that slide over the image, for images too large for the device;
    the default is the whole image at once."""

    def __post_init__(self) -> None:
        at_least("epochs", self.epochs, 1)
        if self.port is not None and not 1 <= self.port <= 65535:
            raise ValueError(f"port: expected 1 to 65535, got {self.port}")
        if self.crop_size is not None:
            at_least("crop_size", min(self.crop_size), 1)

"""Options of ``pspfast demo``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class DemoConfig:
    """The demo's output."""

    output: str = "pspfast-demo"
    """Folder for the pictures, the training curve and the training run."""
    epochs: int = 12
    """Passes over the training scenes."""
    resume: bool = False
    """Whether a demo that was stopped is continued."""

"""``pspfast export``: a model for other runtimes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass
class ExportConfig:
    """The model, the file that is written, and what it takes and gives."""

    checkpoint: str
    """File of a training run, of semseg or mmsegmentation; a folder of save_pretrained, or a name
    on the Hub."""
    output: str = "model.onnx"
    """File to write: .onnx, or .pt2 for torch.export.load."""
    size: tuple[int, int] = (473, 473)
    """Height and width of the images; with dynamic, of those that are traced."""
    dynamic: bool = False
    """Whether the file takes batches and images of any size."""
    outputs: Literal["logits", "labels", "probabilities"] = "logits"
    """What it gives, at the size of the images."""
    preprocess: bool = False
    """Whether it takes images in RGB as bytes, [N, 3, H, W], and prepares them itself."""
    winograd: bool = True
    """Whether wide 3x3 convolutions take Winograd's form, which CPUs are faster with; false for a
    GPU, half precision or int8."""


def export_file(options: ExportConfig) -> Path:
    """Writes the file; raises as ``pspfast.export``."""
    from pspfast.deployment.export import export
    from pspfast.model_files import load_model

    return export(
        load_model(options.checkpoint).model,
        options.output,
        size=options.size,
        dynamic=options.dynamic,
        outputs=options.outputs,
        preprocess=options.preprocess,
        winograd=options.winograd,
    )

"""``pspfast.export``: a PSPNet as a file for other runtimes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pspfast.deployment.network import Outputs, StandardNetwork
from pspfast.deployment.winograd import replace_convolutions
from pspfast.deployment.writing import checked_path, write
from pspfast.models import PSPNet
from pspfast.models.inference import InferencePSPNet


def export(
    model: PSPNet,
    path: str | Path,
    *,
    size: Sequence[int] = (473, 473),
    dynamic: bool = True,
    outputs: Outputs = "logits",
    preprocess: bool = False,
    winograd: bool = True,
) -> Path:
    """Writes an ONNX file or a ``torch.export`` program, of standard operators only.

    It runs where pspfast is not installed. BatchNorm is folded, and the head's algebra is kept: the
    convolution over the map, the mixing of the pyramid's bins, and interpolation as two products
    with small matrices. Results are those of the model in evaluation, at the images' size.

    Args:
        model: a PSPNet, in training or evaluation mode; it is left as it is.
        path: of the file: ``.onnx`` (needs onnx and onnxscript), or ``.pt2``, which
            ``torch.export.load`` reads.
        size: (H, W) of the images, of those that are traced where sizes are dynamic.
        dynamic: whether batch, H and W are free: one file for images of any size.
        outputs: ``"logits"`` ``[N, K, H, W]``, ``"probabilities"`` likewise, or ``"labels"``
            ``[N, H, W]`` in int64.
        preprocess: whether the images ``[N, 3, H, W]`` are uint8 in RGB and are prepared within, by
            the model's ``preprocessing``; otherwise they are prepared floats.
        winograd: whether wide 3×3 convolutions take Winograd's form, with which runtimes on CPUs
            are faster, in float32; without it where a GPU, half precision or int8 is meant.

    Returns:
        The path. The input is called ``images``, the output as ``outputs`` says. Names of the
        classes and the preprocessing are in the file's metadata, under ``pspfast``.

    Raises:
        TypeError: the model is no PSPNet, or one that is optimised already.
        ValueError: a path of another ending, a size or another argument is not as above; or a layer
            has hooks. Nothing is written then.
        ModuleNotFoundError: ONNX is meant, and onnx or onnxscript is not installed.

    Examples:
        >>> model = PSPNet(18, classes=4, head_channels=64)
        >>> path = export(model, "model.pt2", size=(65, 65), outputs="labels", dynamic=False)
        >>> torch.export.load(path).module()(torch.randn(1, 3, 65, 65)).shape
        torch.Size([1, 65, 65])
    """
    path = checked_path(path, "export")
    _check(model, size, outputs, preprocess)
    network = StandardNetwork(model, outputs, preprocess)
    if winograd:
        replace_convolutions(network)
    dtype = torch.uint8 if preprocess else next(model.parameters()).dtype
    # A batch of two, because one of one would be a constant.
    device = next(model.parameters()).device
    images = torch.zeros(2 if dynamic else 1, model.in_channels, *size, dtype=dtype, device=device)
    shapes = None
    if dynamic:
        auto = torch.export.Dim.DYNAMIC
        shapes = {"images": {0: auto, 2: auto, 3: auto}}
    with torch.no_grad():
        program = torch.export.export(network, (images,), dynamic_shapes=shapes)
    described = json.dumps(_describe(model, outputs, preprocess))
    write(
        program,
        path,
        (images,),
        input_names=["images"],
        output_names=[outputs],
        described=described,
    )
    return path


def _check(model: Any, size: Sequence[int], outputs: str, preprocess: bool) -> None:
    if not isinstance(model, PSPNet) or isinstance(model, InferencePSPNet):
        raise TypeError(
            f"export: model: expected a PSPNet, got {type(model).__name__}: "
            + (
                "export the PSPNet that it was made of"
                if isinstance(model, InferencePSPNet)
                else "pspfast.export_rewritten takes other models"
            )
        )
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"export: size: expected (H, W) of at least 1, got {tuple(size)}")
    if outputs not in ("logits", "labels", "probabilities"):
        raise ValueError(
            f'export: outputs: expected "logits", "labels" or "probabilities", got {outputs!r}'
        )
    if preprocess and model.in_channels != 3:
        raise ValueError(
            "export: preprocess: expected False for images of other channels than RGB, got True "
            f"and {model.in_channels} channels"
        )


def _describe(model: PSPNet, outputs: str, preprocess: bool) -> dict[str, Any]:
    names = model.class_names or [f"class_{i}" for i in range(model.classes)]
    return {
        "outputs": outputs,
        "class_names": list(names),
        "preprocessing": {**model.preprocessing.to_dict(), "is_within": preprocess},
    }

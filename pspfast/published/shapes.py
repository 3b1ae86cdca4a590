"""Options of a PSPNet that the shapes of its weights tell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pspfast.models.resnet import BLOCKS, DEEP_STEMS


def infer_backbone(name: str, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """``layers``, ``stem`` and ``in_channels``.

    Args:
        name: of the file, for errors.
        weights: with this project's keys, of ``layer0`` to ``layer4`` at least.

    Raises:
        ValueError: they are of no ResNet that PSPNet has.
    """
    counts = tuple(_count(weights, f"layer{i}.") for i in range(1, 5))
    has_conv3 = "layer1.0.conv3.weight" in weights
    depths = {18: False, 34: False, 50: True, 101: True, 152: True}
    layers = next((d for d, c3 in depths.items() if BLOCKS[d] == counts and c3 == has_conv3), None)
    if layers is None:
        kind = "three" if has_conv3 else "two"
        raise ValueError(
            f"{name}: layers: expected the blocks of ResNet-18, 34, 50, 101 or 152, got "
            f"{list(counts)} blocks of {kind} convolutions"
        )
    first = weights.get("layer0.0.weight")
    if first is None or first.dim() != 4:
        raise ValueError(f"{name}: stem: expected a first convolution, got none that is known")
    widths = tuple(
        weights[key].shape[0] for i in (0, 3, 6) if (key := f"layer0.{i}.weight") in weights
    )
    stems: dict[tuple[int, ...], str] = {(*v, 3): name for name, v in DEEP_STEMS.items()}
    stem = (stems | {(64, 7): "7x7"}).get((*widths, first.shape[2]))
    if stem is None:
        raise ValueError(
            f"{name}: stem: expected 3×3 convolutions of 64-64-128 or 32-32-64 channels, or one "
            f"7×7 of 64, got {first.shape[2]}×{first.shape[3]} of {'-'.join(map(str, widths))}"
        )
    found = {"layers": layers, "stem": stem, "in_channels": first.shape[1]}
    shortcut = weights.get("layer2.0.downsample.1.weight")
    if shortcut is not None and shortcut.dim() == 4:
        raise ValueError(
            f"{name}: expected shortcuts of a 1×1 convolution, got ones with an average pool "
            "before it (ResNet-D, v1d, vd), which PSPNet has not"
        )
    return found


def infer_heads(name: str, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Widths, ``classes``, ``use_ppm``, ``aux``, and the number of levels under ``levels``.

    Raises:
        ValueError: a head is of another form.
    """
    try:
        fuse, classifier = weights["cls.0.weight"], weights["cls.4.weight"]
        channels = weights["layer3.0.conv1.weight"].shape[0] * (
            8 if "layer3.0.conv3.weight" in weights else 2
        )
        levels = _count(weights, "ppm.features.")
        reduction = weights["ppm.features.0.1.weight"].shape[0] if levels else None
        aux = weights.get("aux.0.weight")
        found = {
            "classes": classifier.shape[0],
            "head_channels": fuse.shape[0],
            "use_ppm": levels > 0,
            "ppm_channels": reduction,
            "aux": aux is not None,
            "aux_channels": 256 if aux is None else aux.shape[0],
            "levels": levels,
        }
        expected = channels + levels * (reduction or 0)
        if fuse.shape[1] != expected:
            raise ValueError(
                f"{name}: the head: expected a convolution of {channels} channels and those of "
                f"{levels} levels, {expected} together, got {fuse.shape[1]}"
            )
    except (KeyError, IndexError) as error:
        raise ValueError(f"{name}: the head is of another form: {error}") from error
    return found


def _count(weights: Mapping[str, Tensor], prefix: str) -> int:
    numbers = {k.removeprefix(prefix).partition(".")[0] for k in weights if k.startswith(prefix)}
    return len(numbers)

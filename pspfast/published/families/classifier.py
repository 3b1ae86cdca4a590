"""Classifiers as backbones: torchvision's and timm's ResNets, and semseg's ``resnet*_v2.pth``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from pspfast.published.found import Found
from pspfast.published.reading import WeightsFile, read_weights
from pspfast.published.shapes import infer_backbone

# timm's deep stem is a Sequential of convolutions, BatchNorms and ReLUs, and one BatchNorm behind.
_TIMM_STEM = {"0": "0", "1": "1", "3": "3", "4": "4", "6": "6"}


def recognise(file: WeightsFile) -> bool:
    """Whether a file has a ResNet's keys and no others but a classifier's."""
    heads = {k.partition(".")[0] for k in file.weights}
    stem = {f"{kind}{i}" for kind in ("conv", "bn") for i in (1, 2, 3)}
    return "layer4.0.conv1.weight" in file.weights and heads <= {
        *stem,
        *(f"layer{i}" for i in range(1, 5)),
        "fc",
    }


def convert(file: WeightsFile) -> Found:
    """The backbone's weights; ``fc`` is left out.

    Raises:
        ValueError: it is of no ResNet that PSPNet has.
    """
    weights = renamed_backbone(file.weights)
    found = Found("a ResNet classifier", (file.path,), weights, is_backbone=True)
    found.note("shapes", **infer_backbone(found.name, weights))
    found.note("PSPNet's default; a classifier has none", align_corners=True, dilation="uniform")
    found.note("PSPNet's default", bins=(1, 2, 3, 6))
    found.sources["preprocessing"] = "ImageNet"
    return found


def renamed_backbone(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keys of a ResNet as this project's: ``conv1 bn1`` (torchvision), ``conv1 bn1 … conv3 bn3``
    (semseg, CSAIL) or ``conv1.0 … conv1.6 bn1`` (timm) become ``layer0``; ``fc`` is left out."""
    is_nested = "conv1.0.weight" in weights
    renamed = {}
    for key, value in weights.items():
        module, _, rest = key.partition(".")
        if module == "fc":
            continue
        if is_nested and module == "conv1":
            number, _, parameter = rest.partition(".")
            module, rest = f"layer0.{_TIMM_STEM.get(number, number)}", parameter
        elif is_nested and module == "bn1":
            module = "layer0.7"
        for i in (1, 2, 3):
            # layer0 holds convolution, BatchNorm and ReLU in threes.
            if module in (f"conv{i}", f"bn{i}"):
                module = f"layer0.{3 * (i - 1) + (module == f'bn{i}')}"
        renamed[f"{module}.{rest}"] = value
    return renamed


def load_imagenet_weights(stages: list[nn.Sequential], path: str | Path) -> None:
    """Loads a classifier's weights into ``layer0`` to ``layer4``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: keys or shapes differ; the message lists them. Nothing is loaded then.
    """
    from pspfast.published.loading import differences

    try:
        weights = renamed_backbone(read_weights(Path(path)).weights)
    except FileNotFoundError as error:
        problem = f"PSPNet: pretrained: expected a file of weights, got {path}"
        raise FileNotFoundError(problem) from error
    except ValueError as error:
        raise ValueError(f"PSPNet: pretrained: {error}") from error
    backbone = nn.ModuleDict({f"layer{i}": stage for i, stage in enumerate(stages)})
    problem = differences(backbone.state_dict(), weights)
    if problem:
        raise ValueError(
            f"PSPNet: pretrained: {path} does not fit this backbone (compare `layers` and `stem`); "
            f"{problem}"
        )
    backbone.load_state_dict(weights, strict=False)

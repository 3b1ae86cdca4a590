"""ResNet backbones with dilated stages (arXiv 1512.03385; dilation: arXiv 1612.01105 §3.3).

Parameter names inside a stage are those of torchvision and semseg, whose ImageNet weights fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pspfast.models.recompute import norm, norm_relu
from pspfast.ops.dilated_conv2d import dilated_conv2d

Stem = Literal["deep", "deep_narrow", "7x7"]
Dilation = Literal["uniform", "contracted"]

# Widths of the three 3x3 convolutions of a deep stem: semseg's and CSAIL's, mmseg's ResNet-v1c.
_DEEP_STEMS = {"deep": (64, 64, 128), "deep_narrow": (32, 32, 64)}
_BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


class DilatedConv2d(nn.Conv2d):
    """``nn.Conv2d`` of 3×3, stride 1 and padding = dilation, without bias, by
    :func:`pspfast.ops.dilated_conv2d`."""

    def __init__(self, in_channels: int, out_channels: int, dilation: int = 1) -> None:
        super().__init__(
            in_channels, out_channels, 3, padding=dilation, dilation=dilation, bias=False
        )

    def forward(self, input: Tensor) -> Tensor:
        return dilated_conv2d(input, self.weight, dilation=self.dilation[0])


class ResNetStem(nn.Sequential):
    """Convolutions, each with its BatchNorm and ReLU, and a pool."""

    def forward(self, input: Tensor) -> Tensor:
        layers: Any = list(self)
        x = layers[0](input)
        for bn, relu, then in zip(layers[1::3], layers[2::3], layers[3::3], strict=True):
            x = then(norm_relu(x, bn, relu))
        return x


class Downsample(nn.Sequential):
    """The strided 1x1 convolution of a residual connection, and its BatchNorm."""

    def forward(self, input: Tensor) -> Tensor:
        return norm(self[0](input), self[1])


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a residual connection; both are dilated in a dilated stage."""

    expansion = 1

    def __init__(
        self, in_channels: int, planes: int, stride: int, dilation: int, first_dilation: int
    ) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, planes, stride, first_dilation)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = _conv3x3(planes, planes, 1, dilation)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _downsample(in_channels, planes * self.expansion, stride)

    def forward(self, x: Tensor) -> Tensor:
        residual = x if self.downsample is None else self.downsample(x)
        x = self.conv2(norm_relu(self.conv1(x), self.bn1, self.relu))
        return norm_relu(x, self.bn2, self.relu, residual)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution with a residual connection; the 3x3 strides or dilates."""

    expansion = 4

    def __init__(
        self, in_channels: int, planes: int, stride: int, dilation: int, first_dilation: int
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, planes, kernel_size=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = _conv3x3(planes, planes, stride, first_dilation)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, planes * self.expansion, kernel_size=1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _downsample(in_channels, planes * self.expansion, stride)

    def forward(self, x: Tensor) -> Tensor:
        residual = x if self.downsample is None else self.downsample(x)
        x = self.conv2(norm_relu(self.conv1(x), self.bn1, self.relu))
        x = self.conv3(norm_relu(x, self.bn2, self.relu))
        return norm_relu(x, self.bn3, self.relu, residual)


def make_backbone(layers: int, stem: Stem, dilation: Dilation) -> tuple[list[nn.Sequential], int]:
    """The five stages ``layer0`` (stem) to ``layer4`` of a ResNet with output stride 8.

    Args:
        layers: 18, 34, 50, 101 or 152.
        stem: ``"deep"``, three 3x3 convolutions of 64-64-128 channels (semseg, CSAIL);
            ``"deep_narrow"``, 32-32-64 (mmseg's v1c); ``"7x7"``, one of 64 (torchvision).
        dilation: ``layer3`` and ``layer4`` dilate their 3x3 convolutions by 2 and 4 instead of
            striding: ``"uniform"``, all of them (semseg); ``"contracted"``, the one that lost its
            stride by half of that (mmseg, CSAIL, torchvision).

    Returns:
        The stages and the number of channels of ``layer4``; ``layer3`` has half as many.
    """
    block = BasicBlock if layers in (18, 34) else Bottleneck
    if stem == "7x7":
        widths: tuple[int, ...] = (64,)
        convs = [nn.Conv2d(3, 64, kernel_size=7, stride=2, padding=3, bias=False)]
    else:
        widths = _DEEP_STEMS[stem]
        convs = [
            _conv3x3(in_channels, width, 2 if i == 0 else 1, 1)
            for i, (in_channels, width) in enumerate(zip((3, *widths), widths, strict=False))
        ]
    layer0 = ResNetStem()
    for conv, width in zip(convs, widths, strict=True):
        layer0.extend([conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)])
    layer0.append(nn.MaxPool2d(kernel_size=3, stride=2, padding=1))

    stages: list[nn.Sequential] = [layer0]
    channels = widths[-1]
    for planes, count, stride, d in zip(
        (64, 128, 256, 512), _BLOCKS[layers], (1, 2, 1, 1), (1, 1, 2, 4), strict=True
    ):
        first_dilation = d // 2 if dilation == "contracted" and d > 1 else d
        stage = nn.Sequential(block(channels, planes, stride, d, first_dilation))
        channels = planes * block.expansion
        for _ in range(1, count):
            stage.append(block(channels, planes, 1, d, d))
        stages.append(stage)

    for stage in stages:
        for module in stage.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return stages, channels


def load_imagenet_weights(stages: list[nn.Sequential], path: str | Path) -> None:
    """Load a classifier's weights into the stages that :func:`make_backbone` returned.

    Args:
        stages: ``layer0`` to ``layer4``.
        path: a ``.pth`` or ``.safetensors`` file with the keys of semseg's ``resnet*_v2.pth``
            (deep stem: ``conv1 bn1 conv2 bn2 conv3 bn3``) or torchvision's ResNet (``conv1 bn1``);
            its ``fc`` is left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: keys or shapes differ; the message lists them. Nothing is loaded then.
    """
    weights = _read_weights(Path(path))
    backbone = nn.ModuleDict({f"layer{i}": stage for i, stage in enumerate(stages)})
    renamed = {}
    for key, value in weights.items():
        module, _, parameter = key.removeprefix("module.").partition(".")
        if module == "fc":
            continue
        for i in (1, 2, 3):
            # layer0 holds convolution, BatchNorm and ReLU in threes.
            if module in (f"conv{i}", f"bn{i}"):
                module = f"layer0.{3 * (i - 1) + (module == f'bn{i}')}"
        renamed[f"{module}.{parameter}"] = value

    expected = backbone.state_dict()
    # Files from before torch 0.4.1 have no such counter, and it plays no part in inference.
    missing = [k for k in expected if k not in renamed and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in renamed if k not in expected]
    differing = [
        f"{k}: expected {tuple(expected[k].shape)}, got {tuple(renamed[k].shape)}"
        for k in expected
        if k in renamed and expected[k].shape != renamed[k].shape
    ]
    if missing or unexpected or differing:
        raise ValueError(
            f"PSPNet: pretrained: {path} does not fit this backbone (compare `layers` and `stem`); "
            f"missing keys: {_listing(missing)}; unexpected keys: {_listing(unexpected)}; "
            f"other shapes: {_listing(differing)}"
        )
    backbone.load_state_dict(renamed, strict=False)


def _read_weights(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"PSPNet: pretrained: expected a file of weights, got {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        contents = torch.load(path, map_location="cpu", weights_only=True)
    # Damaged and foreign files make them raise UnpicklingError, RuntimeError, SafetensorError and
    # many others.
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"PSPNet: pretrained: {path} is damaged or holds no weights: "
            f"{type(error).__name__}: {reason}"
        ) from error
    weights = contents.get("state_dict", contents) if isinstance(contents, dict) else None
    if not isinstance(weights, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in weights.items()
    ):
        raise ValueError(f"PSPNet: pretrained: {path} holds no state_dict of tensors by name")
    return weights


def _listing(items: list[str], shown: int = 8) -> str:
    more = f" and {len(items) - shown} more" if len(items) > shown else ""
    return (", ".join(items[:shown]) + more) or "none"


def _conv3x3(in_channels: int, out_channels: int, stride: int, dilation: int) -> nn.Conv2d:
    if stride == 1:
        return DilatedConv2d(in_channels, out_channels, dilation)
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)


def _downsample(in_channels: int, out_channels: int, stride: int) -> Downsample | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return Downsample(
        nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False),
        nn.BatchNorm2d(out_channels),
    )

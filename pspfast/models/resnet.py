"""ResNet backbones with dilated stages (arXiv 1512.03385; dilation: arXiv 1612.01105 §3.3).

Parameter names inside a stage are those of torchvision and semseg, whose ImageNet weights fit.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

from torch import Tensor, nn

from pspfast.models.recompute import norm, norm_relu
from pspfast.ops.dilated_conv2d import dilated_conv2d

Stem = Literal["deep", "deep_narrow", "7x7"]
Dilation = Literal["uniform", "contracted"]
BlockDilation = Literal["both", "first"]

# Widths of the three 3x3 convolutions of a deep stem: semseg's and CSAIL's, mmseg's ResNet-v1c.
DEEP_STEMS = {"deep": (64, 64, 128), "deep_narrow": (32, 32, 64)}
BLOCKS = {
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
    """Two 3x3 convolutions with a residual connection; the first strides or dilates."""

    expansion = 1

    def __init__(
        self, in_channels: int, planes: int, stride: int, dilation: int, second_dilation: int
    ) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, planes, stride, dilation)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = _conv3x3(planes, planes, 1, second_dilation)
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

    def __init__(self, in_channels: int, planes: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, planes, kernel_size=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = _conv3x3(planes, planes, stride, dilation)
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


def make_backbone(
    layers: int,
    stem: Stem,
    dilation: Dilation,
    *,
    block_dilation: BlockDilation = "both",
    output_stride: int = 8,
    in_channels: int = 3,
) -> tuple[list[nn.Sequential], int]:
    """The five stages ``layer0`` (stem) to ``layer4`` of a dilated ResNet.

    Args:
        layers: 18, 34, 50, 101 or 152.
        stem: ``"deep"``, three 3x3 convolutions of 64-64-128 channels (semseg, CSAIL);
            ``"deep_narrow"``, 32-32-64 (mmseg's v1c); ``"7x7"``, one of 64 (torchvision).
        dilation: ``layer3`` and ``layer4`` dilate their 3x3 convolutions by 2 and 4 instead of
            striding: ``"uniform"``, all of them (semseg); ``"contracted"``, the one that lost its
            stride by half of that (mmseg, CSAIL, torchvision).
        block_dilation: which 3x3 convolutions of a dilated block of two dilate: ``"both"``, or the
            ``"first"`` (mmseg). ResNet-50 and deeper have one in a block.
        output_stride: of ``layer4``: 8, or 32, where ``layer3`` and ``layer4`` stride as well as
            they dilate (mmseg's D32).
        in_channels: of the images.

    Returns:
        The stages and the number of channels of ``layer4``; ``layer3`` has half as many.

    Raises:
        ValueError: an argument is none of these.
    """
    check_choice("layers", layers, tuple(BLOCKS))
    check_choice("stem", stem, get_args(Stem))
    check_choice("dilation", dilation, get_args(Dilation))
    check_choice("block_dilation", block_dilation, get_args(BlockDilation))
    check_choice("output_stride", output_stride, (8, 32))
    block = BasicBlock if layers in (18, 34) else Bottleneck
    if stem == "7x7":
        widths: tuple[int, ...] = (64,)
        convs = [nn.Conv2d(in_channels, 64, kernel_size=7, stride=2, padding=3, bias=False)]
    else:
        widths = DEEP_STEMS[stem]
        convs = [
            _conv3x3(channels, width, 2 if i == 0 else 1, 1)
            for i, (channels, width) in enumerate(zip((in_channels, *widths), widths, strict=False))
        ]
    layer0 = ResNetStem()
    for conv, width in zip(convs, widths, strict=True):
        layer0.extend([conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)])
    layer0.append(nn.MaxPool2d(kernel_size=3, stride=2, padding=1))

    stages: list[nn.Sequential] = [layer0]
    channels = widths[-1]
    strides = (1, 2, 1, 1) if output_stride == 8 else (1, 2, 2, 2)
    for planes, count, first_stride, d in zip(
        (64, 128, 256, 512), BLOCKS[layers], strides, (1, 1, 2, 4), strict=True
    ):
        stage = nn.Sequential()
        for i in range(count):
            stride = first_stride if i == 0 else 1
            dilations = [d // 2 if dilation == "contracted" and d > 1 and i == 0 else d]
            if block is BasicBlock:
                dilations.append(d if block_dilation == "both" else 1)
            stage.append(block(channels, planes, stride, *dilations))
            channels = planes * block.expansion
        stages.append(stage)

    for stage in stages:
        for module in stage.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return stages, channels


def check_choice(name: str, got: object, choices: tuple[object, ...]) -> None:
    """Raises ValueError where an argument of PSPNet is none of the choices."""
    if got not in choices:
        raise ValueError(f"PSPNet: {name}: expected one of {choices}, got {got!r}")


def _conv3x3(in_channels: int, out_channels: int, stride: int, dilation: int) -> nn.Conv2d:
    if stride == 1:
        return DilatedConv2d(in_channels, out_channels, dilation)
    return nn.Conv2d(
        in_channels, out_channels, 3, stride, padding=dilation, dilation=dilation, bias=False
    )


def _downsample(in_channels: int, out_channels: int, stride: int) -> Downsample | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return Downsample(
        nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False),
        nn.BatchNorm2d(out_channels),
    )

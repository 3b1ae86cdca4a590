"""semseg's PSPNet in plain PyTorch, as its users run and train it; peers.py sets it up."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BINS = (1, 2, 3, 6)


class Bottleneck(nn.Module):
    def __init__(self, channels: int, planes: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(
            planes, planes, 3, stride, padding=dilation, dilation=dilation, bias=False
        )
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, 4 * planes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * planes)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or channels != 4 * planes:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, 4 * planes, 1, stride, bias=False), nn.BatchNorm2d(4 * planes)
            )

    def forward(self, x: Tensor) -> Tensor:
        residual = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.relu(self.bn3(self.conv3(x)) + residual)


class PPM(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        reduction = channels // len(BINS)
        self.features = nn.ModuleList(
            nn.Sequential(
                nn.AdaptiveAvgPool2d(b),
                nn.Conv2d(channels, reduction, 1, bias=False),
                nn.BatchNorm2d(reduction),
                nn.ReLU(inplace=True),
            )
            for b in BINS
        )

    def forward(self, x: Tensor) -> Tensor:
        priors = [
            F.interpolate(feature(x), x.shape[2:], mode="bilinear", align_corners=True)
            for feature in self.features
        ]
        return torch.cat([x, *priors], 1)


class SemsegPSPNet(nn.Module):
    """PSPNet50, without dropout.

    Args:
        state: the state_dict of a ``pspfast.PSPNet(50)``, or of semseg's.

    Shape:
        ``[N, 3, H, W]``, H and W 8n+1, to logits ``[N, K, H, W]``.
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        classes = state["cls.4.bias"].shape[0]
        self.layer0 = nn.Sequential()
        for i, (channels, planes) in enumerate([(3, 64), (64, 64), (64, 128)]):
            conv = nn.Conv2d(channels, planes, 3, 1 if i else 2, padding=1, bias=False)
            self.layer0.extend([conv, nn.BatchNorm2d(planes), nn.ReLU(inplace=True)])
        self.layer0.append(nn.MaxPool2d(3, stride=2, padding=1))
        self.layer1 = _stage(128, 64, 3, 1, 1)
        self.layer2 = _stage(256, 128, 4, 2, 1)
        self.layer3 = _stage(512, 256, 6, 1, 2)
        self.layer4 = _stage(1024, 512, 3, 1, 4)
        self.ppm = PPM(2048)
        self.cls = _classifier(4096, 512, classes)
        self.aux = _classifier(1024, 256, classes)
        self.load_state_dict(state)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[2:]
        x = self.layer2(self.layer1(self.layer0(x)))
        x = self.cls(self.ppm(self.layer4(self.layer3(x))))
        return F.interpolate(x, size, mode="bilinear", align_corners=True)

    def forward_train(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of both heads at the resolution of the features."""
        x_aux = self.layer3(self.layer2(self.layer1(self.layer0(x))))
        return self.cls(self.ppm(self.layer4(x_aux))), self.aux(x_aux)

    def losses(self, images: Tensor, target: Tensor) -> list[Tensor]:
        """Of both heads; semseg computes the labels, too."""
        logits = [
            F.interpolate(x, target.shape[1:], mode="bilinear", align_corners=True)
            for x in self.forward_train(images)
        ]
        logits[0].argmax(1)
        return [F.cross_entropy(x, target, ignore_index=255) for x in logits]


def _classifier(channels: int, planes: int, classes: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, planes, 3, padding=1, bias=False),
        nn.BatchNorm2d(planes),
        nn.ReLU(inplace=True),
        nn.Identity(),  # semseg's dropout
        nn.Conv2d(planes, classes, 1),
    )


def _stage(channels: int, planes: int, blocks: int, stride: int, dilation: int) -> nn.Sequential:
    rest = [Bottleneck(4 * planes, planes, 1, dilation) for _ in range(blocks - 1)]
    return nn.Sequential(Bottleneck(channels, planes, stride, dilation), *rest)

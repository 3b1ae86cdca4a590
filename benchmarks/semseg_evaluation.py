"""semseg's evaluation in plain PyTorch and numpy, as its users run it, with a PSPNet18."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.semseg import PPM, _classifier

MEAN = np.array([123.675, 116.28, 103.53], np.float32)
STD = np.array([58.395, 57.12, 57.375], np.float32)


class BasicBlock(nn.Module):
    def __init__(self, channels: int, planes: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(channels, planes, stride, dilation)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = _conv3x3(planes, planes, 1, dilation)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or channels != planes:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, planes, 1, stride, bias=False), nn.BatchNorm2d(planes)
            )

    def forward(self, x: Tensor) -> Tensor:
        residual = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)) + residual)


class SemsegPSPNet18(nn.Module):
    """What semseg's PSPNet is with the blocks and the stem of ResNet-18.

    Args:
        state: the state_dict of a ``pspfast.PSPNet(18, stem="7x7")``.

    Shape:
        ``[N, 3, H, W]``, H and W 8n+1, to logits ``[N, K, H, W]``.
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.layer0 = nn.Sequential(
            nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        stages = [(64, 64, 1, 1), (64, 128, 2, 1), (128, 256, 1, 2), (256, 512, 1, 4)]
        for i, (channels, planes, stride, dilation) in enumerate(stages, start=1):
            blocks = (
                BasicBlock(channels, planes, stride, dilation),
                BasicBlock(planes, planes, 1, dilation),
            )
            setattr(self, f"layer{i}", nn.Sequential(*blocks))
        self.ppm = PPM(512)
        self.cls = _classifier(1024, 512, state["cls.4.bias"].shape[0])
        self.load_state_dict({k: v for k, v in state.items() if not k.startswith("aux.")})
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[2:]
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.layer0(x)))))
        x = self.cls(self.ppm(x))
        return F.interpolate(x, size, mode="bilinear", align_corners=True)


def _conv3x3(channels: int, planes: int, stride: int, dilation: int) -> nn.Conv2d:
    return nn.Conv2d(channels, planes, 3, stride, padding=dilation, dilation=dilation, bias=False)


def evaluate(
    model: nn.Module,
    image: np.ndarray,
    classes: int,
    crop: int,
    base_size: int,
    scales: Sequence[float],
) -> np.ndarray:
    """Labels ``[H, W]`` of an image ``[H, W, 3]`` of float32 RGB values 0 to 255."""
    height, width, _ = image.shape
    prediction = np.zeros((height, width, classes))
    for scale in scales:
        long = round(scale * base_size)
        size = [long, long]
        if height > width:
            size[1] = round(long / height * width)
        else:
            size[0] = round(long / width * height)
        prediction += _scale(model, _resize(image, size), classes, crop, (height, width))
    return np.argmax(prediction / len(scales), axis=2)


def _scale(
    model: nn.Module, image: np.ndarray, classes: int, crop: int, size: tuple[int, int]
) -> np.ndarray:
    """Probabilities ``[*size, K]`` of a resized image, from windows that overlap by a third."""
    height, width, _ = image.shape
    pad_height, pad_width = max(crop - height, 0), max(crop - width, 0)
    top, left = pad_height // 2, pad_width // 2
    canvas = np.empty((height + pad_height, width + pad_width, 3), np.float32)
    canvas[:] = MEAN
    canvas[top : top + height, left : left + width] = image

    stride = math.ceil(crop * 2 / 3)
    rows, cols = (math.ceil((length - crop) / stride) + 1 for length in canvas.shape[:2])
    sums, counts = np.zeros((*canvas.shape[:2], classes)), np.zeros(canvas.shape[:2])
    for row in range(rows):
        bottom = min(row * stride + crop, canvas.shape[0])
        for col in range(cols):
            right = min(col * stride + crop, canvas.shape[1])
            window = slice(bottom - crop, bottom), slice(right - crop, right)
            sums[window] += _net(model, canvas[window])
            counts[window] += 1
    sums /= counts[:, :, None]
    return _resize(sums[top : top + height, left : left + width], size)


@torch.inference_mode()
def _net(model: nn.Module, window: np.ndarray) -> np.ndarray:
    """Probabilities ``[H, W, K]`` of a window, the mean over it and its mirror image."""
    device = next(model.parameters()).device
    image = torch.from_numpy(((window - MEAN) / STD).transpose(2, 0, 1)).to(device)
    probabilities = model(torch.stack([image, image.flip(2)])).softmax(1)
    mean = (probabilities[0] + probabilities[1].flip(2)) / 2
    return mean.cpu().numpy().transpose(1, 2, 0)


def _resize(image: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """OpenCV's bilinear ``resize`` of ``[H, W, C]``."""
    maps = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
    resized = F.interpolate(maps, tuple(size), mode="bilinear", align_corners=False)
    return resized[0].permute(1, 2, 0).numpy()

"""An independent PSPNet: functions of a state_dict, in eager PyTorch, with semseg's conventions.

Everything is computed in the dtype of the given weights; float64 makes it an oracle.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class FunctionalPSPNet:
    state: dict[str, Tensor]
    training: bool = False
    bins: tuple[int, ...] = (1, 2, 3, 6)
    use_ppm: bool = True
    zoom_factor: int = 8
    align_corners: bool = True
    contracted: bool = False
    only_first_dilates: bool = False
    output_stride: int = 8

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the main and of the auxiliary head."""
        height, width = x.shape[2:]
        if self.align_corners:
            while x.shape[2] % self.output_stride != 1:
                x = torch.cat([x, torch.zeros_like(x[:, :, :1])], 2)
            while x.shape[3] % self.output_stride != 1:
                x = torch.cat([x, torch.zeros_like(x[:, :, :, :1])], 3)
        size = [(s - 1) * self.zoom_factor // 8 + 1 for s in x.shape[2:]]
        x = self.stem(x)
        last = 1 if self.output_stride == 8 else 2
        strides = [(1, 1), (2, 1), (last, 2), (last, 4)]
        for stage, (stride, dilation) in enumerate(strides, start=1):
            x_aux, x = x, self.stage(x, f"layer{stage}", stride, dilation)
        if self.use_ppm:
            maps = [x]
            for i, b in enumerate(self.bins):
                pooled = F.adaptive_avg_pool2d(x, b)
                prior = F.relu(self.conv_bn(pooled, f"ppm.features.{i}.1", f"ppm.features.{i}.2"))
                maps.append(self.resize(prior, x.shape[2:]))
            x = torch.cat(maps, 1)
        # Without an auxiliary head its logits are those of the head.
        main = self.head(x, "cls")
        logits = main, self.head(x_aux, "aux") if "aux.0.weight" in self.state else main
        if self.zoom_factor != 1:
            logits = self.resize(logits[0], size), self.resize(logits[1], size)
        h, w = ((s - 1) * self.zoom_factor // 8 + 1 for s in (height, width))
        return logits[0][:, :, :h, :w], logits[1][:, :, :h, :w]

    def stem(self, x: Tensor) -> Tensor:
        kernel = self.state["layer0.0.weight"].shape[-1]
        for i in range(0, 9 if kernel == 3 else 3, 3):
            conv, bn = f"layer0.{i}", f"layer0.{i + 1}"
            x = F.relu(self.conv_bn(x, conv, bn, stride=2 if i == 0 else 1, padding=kernel // 2))
        return F.max_pool2d(x, 3, stride=2, padding=1)

    def stage(self, x: Tensor, name: str, stride: int, dilation: int) -> Tensor:
        block = 0
        while f"{name}.{block}.conv1.weight" in self.state:
            prefix = f"{name}.{block}"
            first = dilation // 2 if self.contracted and dilation > 1 and block == 0 else dilation
            s = stride if block == 0 else 1
            shortcut = x
            if f"{prefix}.downsample.0.weight" in self.state:
                shortcut = self.conv_bn(x, f"{prefix}.downsample.0", f"{prefix}.downsample.1", s)
            if f"{prefix}.conv3.weight" in self.state:
                x = F.relu(self.conv_bn(x, f"{prefix}.conv1", f"{prefix}.bn1"))
                x = self.conv_bn(x, f"{prefix}.conv2", f"{prefix}.bn2", s, first, first)
                x = self.conv_bn(F.relu(x), f"{prefix}.conv3", f"{prefix}.bn3")
            else:
                x = self.conv_bn(x, f"{prefix}.conv1", f"{prefix}.bn1", s, first, first)
                x = F.relu(x)
                second = 1 if self.only_first_dilates else dilation
                x = self.conv_bn(x, f"{prefix}.conv2", f"{prefix}.bn2", 1, second, second)
            x = F.relu(x + shortcut)
            block += 1
        return x

    def head(self, x: Tensor, name: str) -> Tensor:
        x = F.relu(self.conv_bn(x, f"{name}.0", f"{name}.1", padding=1))
        return F.conv2d(x, self.state[f"{name}.4.weight"], self.state[f"{name}.4.bias"])

    def conv_bn(
        self, x: Tensor, conv: str, bn: str, stride: int = 1, padding: int = 0, dilation: int = 1
    ) -> Tensor:
        x = F.conv2d(
            x, self.state[f"{conv}.weight"], stride=stride, padding=padding, dilation=dilation
        )
        running = self.state[f"{bn}.running_mean"].clone(), self.state[f"{bn}.running_var"].clone()
        weight, bias = self.state[f"{bn}.weight"], self.state[f"{bn}.bias"]
        return F.batch_norm(x, *running, weight, bias, training=self.training)

    def resize(self, x: Tensor, size: list[int] | torch.Size) -> Tensor:
        return F.interpolate(x, size, mode="bilinear", align_corners=self.align_corners)

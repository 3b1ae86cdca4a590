"""PSPNet in evaluation of standard operators only, BatchNorm folded, for tracing."""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pspfast.deployment.algebra import pyramid_pool, pyramid_upsample_add, upsample
from pspfast.models import PSPNet
from pspfast.models.fusable import check_fusable
from pspfast.models.fused import fold_batch_norm

Outputs = Literal["logits", "labels", "probabilities"]


class StandardNetwork(nn.Module):
    """What a PSPNet computes in evaluation, at the image's size.

    Args:
        model: with plain layers; it is left as it is.
        outputs: ``"logits"``, ``"labels"`` or ``"probabilities"``.
        preprocess: whether images are uint8 in RGB, and prepared within.

    Raises:
        TypeError, ValueError: a layer is another than PSPNet has there, or has hooks.
    """

    def __init__(self, model: PSPNet, outputs: Outputs, preprocess: bool) -> None:
        super().__init__()
        check_fusable(model)
        network: Any = model
        self.outputs, self.preprocess = outputs, preprocess
        self.zoom_factor, self.align_corners = model.zoom_factor, model.align_corners
        self.output_stride, self.use_ppm = model.output_stride, model.use_ppm
        processing = model.preprocessing
        self.is_bgr = processing.channel_order == "bgr"
        parameter = next(model.parameters())
        mean, std = (
            parameter.new_tensor(v)[:, None, None] for v in (processing.mean, processing.std)
        )
        self.register_buffer("scale", 1 / (255 * std))
        self.register_buffer("shift", -mean / std)
        self.scale: Tensor
        self.shift: Tensor
        *stem, pool = network.layer0
        self.stem = nn.Sequential()
        for conv, bn in zip(stem[0::3], stem[1::3], strict=True):
            self.stem.extend([_folded(conv, bn), nn.ReLU()])
        self.stem.append(copy.deepcopy(pool))
        self.blocks = nn.Sequential(
            *(_Block(block) for i in range(1, 5) for block in network.get_submodule(f"layer{i}"))
        )
        fuse, bn, _, _, classifier = network.cls
        self.classifier = _folded(classifier, None)
        weight, bias = fold_batch_norm(fuse, bn)
        if self.use_ppm:
            self.bins: tuple[int, ...] = network.ppm.bins
            convs = [_folded(level[1], level[2]) for level in network.ppm.features]
            self.levels = nn.ModuleList(convs)
            channels = sum(conv.out_channels for conv in convs)
            weight, levels = weight.tensor_split([fuse.in_channels - channels], dim=1)
            for i, part in enumerate(levels.chunk(len(self.levels), dim=1)):
                # [R, k k O], for the products with the level's bins.
                mixing = part.permute(1, 2, 3, 0).flatten(1)
                self.register_buffer(f"mixing{i}", mixing.to(fuse.weight.dtype))
        self.kernel_size = fuse.kernel_size
        self.fuse = _like(fuse, weight, bias)
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """``[N, C, H, W]`` to ``[N, K, H, W]``, or labels ``[N, H, W]``."""
        size = images.shape[2:]
        x = self._prepared(images) if self.preprocess else images
        padded = list(size)
        if self.align_corners:
            bottom, right = (-(s - 1) % self.output_stride for s in size)
            x = F.pad(x, (0, right, 0, bottom))
            padded = [size[0] + bottom, size[1] + right]
        x = self.blocks(self.stem(x))
        logits = self.classifier(self._fused(x))
        if self.zoom_factor in (2, 4):
            # The resolution between, at which the model has its logits.
            middle = [(s - 1) * self.zoom_factor // 8 + 1 for s in padded]
            logits = upsample(logits, middle, self.align_corners)
        logits = upsample(logits, padded, self.align_corners, crop=size)
        if self.outputs == "labels":
            return logits.argmax(1)
        return logits.softmax(1) if self.outputs == "probabilities" else logits

    def _prepared(self, images: Tensor) -> Tensor:
        x = images.to(self.scale.dtype)
        if self.is_bgr:
            x = x.flip(1)
        return x * self.scale + self.shift

    def _fused(self, x: Tensor) -> Tensor:
        base = self.fuse(x)
        if not self.use_ppm:
            return base.relu()
        pooled = pyramid_pool(x, self.bins).split([b * b for b in self.bins], dim=2)
        mixed = []
        for i, (b, level) in enumerate(zip(self.bins, pooled, strict=True)):
            prior = self.levels[i](level.unflatten(2, (b, b))).relu().flatten(2)
            product = prior.transpose(1, 2) @ getattr(self, f"mixing{i}")
            mixed.append(product.unflatten(2, (*self.kernel_size, -1)))
        return pyramid_upsample_add(
            base, torch.cat(mixed, dim=1), None, self.bins, self.align_corners, relu=True
        )


class _Block(nn.Module):
    """A residual block of either kind."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        names = [i for i in (1, 2, 3) if hasattr(block, f"conv{i}")]
        self.convs = nn.ModuleList(
            _folded(getattr(block, f"conv{i}"), getattr(block, f"bn{i}")) for i in names
        )
        self.downsample = None if block.downsample is None else _folded(*block.downsample)

    def forward(self, x: Tensor) -> Tensor:
        residual = x if self.downsample is None else self.downsample(x)
        for conv in self.convs[:-1]:
            x = conv(x).relu()
        return (self.convs[-1](x) + residual).relu()


def _folded(conv: nn.Conv2d, bn: _BatchNorm | None) -> nn.Conv2d:
    return _like(conv, *fold_batch_norm(conv, bn))


def _like(conv: nn.Conv2d, weight: Tensor, bias: Tensor) -> nn.Conv2d:
    """A plain convolution with stride, padding and dilation of another."""
    made = nn.Conv2d(
        weight.shape[1],
        weight.shape[0],
        conv.kernel_size,  # type: ignore[arg-type]
        conv.stride,  # type: ignore[arg-type]
        conv.padding,  # type: ignore[arg-type]
        conv.dilation,  # type: ignore[arg-type]
        device="meta",
    ).to_empty(device=conv.weight.device)
    made = made.to(conv.weight.dtype)
    with torch.no_grad():
        made.weight.copy_(weight)
        assert made.bias is not None
        made.bias.copy_(bias)
    return made

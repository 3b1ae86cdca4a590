"""PSPNet for inference alone: its weights are folded and transformed once."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from pspfast.models.fusable import check_fusable
from pspfast.models.fused import FusedConv2d, fold_batch_norm, fuse_conv2d, fused_conv2d_like
from pspfast.models.hooks import is_watched
from pspfast.models.pspnet import PSPNet
from pspfast.models.resnet import BasicBlock, Bottleneck
from pspfast.ops import pyramid_pool
from pspfast.ops.pyramid_conv2d import add_pyramid


def optimize_for_inference(
    model: PSPNet,
    dtype: torch.dtype | None = None,
    memory_format: torch.memory_format = torch.channels_last,
) -> InferencePSPNet:
    """A copy that computes what ``model`` does in evaluation, faster, and cannot be trained.

    BatchNorm is folded into the convolutions, bias, ReLU and residual additions are part of them,
    the 3×3 convolutions' weights are transformed for Winograd's algorithm (on the CPU, where they
    take four times their memory; each thread that calls the model keeps up to 40 MB more between
    calls), and the auxiliary head is left out. Forward hooks registered on the copy may keep what
    they are given: it is not written to afterwards.

    Args:
        model: a PSPNet, in training or evaluation mode, with BatchNorm or SyncBatchNorm; it is left
            as it is.
        dtype: float32, bfloat16, float16 or float64, of the maps between layers; the default is
            the model's. Images of any floating dtype are taken.
        memory_format: of the maps between layers; channels_last, the default, is what the kernels
            read without a copy.

    Returns:
        A module for the model's device, with its ``forward`` and ``predict``. Gradients do not
        reach its weights. It can be saved by ``torch.save``, compiled, and called by many threads.

    Raises:
        TypeError: ``model`` is no PSPNet, or is optimised already; or a layer is of a type that
            PSPNet has not there; or ``dtype`` is no floating one.
        ValueError: a layer has forward hooks, a ``forward`` of its own, or no running statistics.

    Examples:
        >>> model = PSPNet(18, classes=4, head_channels=64).eval()
        >>> images = torch.randn(1, 3, 65, 65)
        >>> fast = optimize_for_inference(model)
        >>> with torch.no_grad():
        ...     torch.allclose(fast(images), model(images), atol=1e-3)
        True
    """
    if not isinstance(model, PSPNet) or isinstance(model, InferencePSPNet):
        raise TypeError(
            f"optimize_for_inference: model: expected a PSPNet, got {type(model).__name__}"
        )
    dtype = next(model.parameters()).dtype if dtype is None else dtype
    if not dtype.is_floating_point:
        raise TypeError(f"optimize_for_inference: dtype: expected a floating one, got {dtype}")
    check_fusable(model)
    with torch.no_grad():
        return InferencePSPNet(model, dtype, memory_format)


class InferencePSPNet(PSPNet):
    """What :func:`optimize_for_inference` returns."""

    def __init__(
        self, model: PSPNet, dtype: torch.dtype, memory_format: torch.memory_format
    ) -> None:
        nn.Module.__init__(self)  # PSPNet's own would make layers that are replaced.
        self._classes = model.classes
        self.zoom_factor = model.zoom_factor
        self.use_ppm = model.use_ppm
        self.align_corners = model.align_corners
        self.output_stride, self.in_channels = model.output_stride, model.in_channels
        self.preprocessing = model.preprocessing
        self.class_names, self.palette = model.class_names, model.palette
        self.aux = None
        self.dtype = dtype
        # A memory_format cannot be saved.
        self.is_channels_last = memory_format == torch.channels_last

        stem: Any = model.layer0
        *convs, pool = stem
        fused = [
            fuse_conv2d(conv, bn, True, dtype)
            for conv, bn in zip(convs[0::3], convs[1::3], strict=True)
        ]
        self.layer0 = nn.Sequential(*fused, copy.deepcopy(pool))
        for name in ("layer1", "layer2", "layer3", "layer4"):
            blocks = [FusedBlock(block, dtype) for block in getattr(model, name)]
            setattr(self, name, FusedStage(*blocks))
        if model.use_ppm:
            self.ppm = FusedPyramidPriors(model.ppm, dtype)
            priors: Any = model.ppm
            channels = sum(conv.out_channels for _, conv, *_ in priors.features)
            self.cls = FusedPyramidHead(model.cls, channels, dtype)
        else:
            head: Any = model.cls
            conv, bn, _, _, classifier = head
            self.cls = nn.Sequential(
                fuse_conv2d(conv, bn, True, dtype), fuse_conv2d(classifier, None, False, dtype)
            )
        self.to(memory_format=memory_format)
        self.eval()

    def _prepare(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            raise RuntimeError(
                "InferencePSPNet: x: expected images that require no gradient, which its layers do "
                "not compute; take it of the PSPNet that this was made of"
            )
        memory_format = torch.channels_last if self.is_channels_last else torch.contiguous_format
        return self._pad(x).to(self.dtype).contiguous(memory_format=memory_format)

    def train(self, mode: bool = True) -> InferencePSPNet:
        if mode:
            raise RuntimeError(
                "InferencePSPNet: train: expected mode False, got True: its weights are folded; "
                "train the PSPNet that it was made of"
            )
        return super().train(False)


class FusedStage(nn.Sequential):
    """Residual blocks. A block's result takes the memory of its residual where nobody else can have
    it: within a stage, if no hook is given it."""

    def forward(self, input: Tensor) -> Tensor:
        x = input
        overwrite = (
            x.device.type == "cpu"
            and not torch.compiler.is_compiling()
            and not any(map(is_watched, self.modules()))
        )
        for block in self:
            residual_is_input = x is input and block.downsample is None
            x = block(x, overwrite=True) if overwrite and not residual_is_input else block(x)
        return x


class FusedBlock(nn.Module):
    """A residual block of either kind."""

    def __init__(self, block: BasicBlock | Bottleneck, dtype: torch.dtype) -> None:
        super().__init__()
        layers = [(block.conv1, block.bn1), (block.conv2, block.bn2)]
        if isinstance(block, Bottleneck):
            layers.append((block.conv3, block.bn3))
        self.convs = nn.ModuleList(fuse_conv2d(conv, bn, True, dtype) for conv, bn in layers)
        downsample: Any = block.downsample
        self.downsample: FusedConv2d | None = None
        if downsample is not None:
            conv, bn = downsample
            self.downsample = fuse_conv2d(conv, bn, False, dtype)

    def forward(self, x: Tensor, overwrite: bool = False) -> Tensor:
        """``overwrite``: whether the result may take the memory of the residual, which is x where
        there is no ``downsample``."""
        residual = x if self.downsample is None else self.downsample(x)
        for conv in self.convs[:-1]:
            x = conv(x)
        return self.convs[-1](x, residual, overwrite)


class FusedPyramidPriors(nn.Module):
    """:class:`PyramidPriors` whose level convolutions are matrix products."""

    def __init__(self, priors: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.bins = priors.bins
        for level, (_, conv, bn, _) in enumerate(priors.features):
            weight, bias = fold_batch_norm(conv, bn)
            self.register_buffer(f"weight{level}", weight.flatten(1).to(dtype))
            self.register_buffer(f"bias{level}", bias[:, None].to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W]`` to ``[N, R, S]``."""
        pooled = pyramid_pool(x, self.bins).split([b * b for b in self.bins], dim=2)
        priors = [
            getattr(self, f"weight{level}") @ bins + getattr(self, f"bias{level}")
            for level, bins in enumerate(pooled)
        ]
        return torch.cat(priors, dim=2).relu_()


class FusedPyramidHead(nn.Module):
    """:class:`Head` over the pyramid, the weight of its convolution cut in two: for the map and for
    the levels."""

    def __init__(self, head: Any, pyramid_channels: int, dtype: torch.dtype) -> None:
        super().__init__()
        conv, bn, _, _, classifier = head
        self.bins = conv.bins
        self.align_corners = conv.align_corners
        weight, bias = fold_batch_norm(conv, bn)
        for_map, for_levels = weight.tensor_split([conv.in_channels - pyramid_channels], dim=1)
        self.conv = fused_conv2d_like(conv, for_map, None, False, dtype)
        self.register_buffer("weight", for_levels.to(dtype))
        self.register_buffer("bias", bias.to(dtype))
        self.weight: Tensor
        self.bias: Tensor
        self.classifier = fuse_conv2d(classifier, None, False, dtype)

    def forward(self, x: Tensor, priors: Tensor) -> Tensor:
        base = self.conv(x)
        return self.classifier(
            add_pyramid(
                base, priors, self.weight, self.bins, self.align_corners, self.bias, relu=True
            )
        )

"""Convolutions with frozen weights: BatchNorm folded in, bias, residual and ReLU fused."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from pspfast import backends
from pspfast.ops.dilated_conv2d import dilated_conv2d


def fold_batch_norm(conv: nn.Conv2d, bn: _BatchNorm | None) -> tuple[Tensor, Tensor]:
    """Weight and bias, in float64, of a convolution that does what ``conv`` and ``bn`` after it do
    in evaluation."""
    bias = conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias
    weight, bias = conv.weight.detach().double(), bias.detach().double()
    if bn is None:
        return weight, bias
    assert bn.running_mean is not None and bn.running_var is not None
    mean, variance = bn.running_mean.double(), bn.running_var.double()
    scale, shift = (None if t is None else t.detach().double() for t in (bn.weight, bn.bias))
    return fuse_conv_bn_weights(weight, bias, mean, variance, bn.eps, scale, shift)


def fuse_conv2d(
    conv: nn.Conv2d, bn: _BatchNorm | None, relu: bool, dtype: torch.dtype
) -> FusedConv2d:
    """``conv``, ``bn`` and ReLU as one module: the one that is fastest on the device of ``conv``
    for maps of this dtype."""
    weight, bias = fold_batch_norm(conv, bn)
    return fused_conv2d_like(conv, weight, bias, relu, dtype)


def fused_conv2d_like(
    conv: nn.Conv2d, weight: Tensor, bias: Tensor | None, relu: bool, dtype: torch.dtype
) -> FusedConv2d:
    """The same of a given weight and bias, with stride, padding and dilation of ``conv``."""
    d = conv.dilation[0]
    is_dilated = (
        conv.kernel_size == (3, 3)
        and conv.stride == (1, 1)
        and conv.padding == conv.dilation == (d, d)
    )
    if not is_dilated:
        return FusedConv2d(conv, weight, bias, relu, dtype)
    has_kernel = weight.device.type == "cpu" and backends.default("cpu") == "cpu"
    if has_kernel and _winograd_is_faster(weight, d, dtype):
        return FusedWinogradConv2d(conv, weight, bias, relu, dtype)
    return FusedDilatedConv2d(conv, weight, bias, relu, dtype)


def _winograd_is_faster(weight: Tensor, dilation: int, dtype: torch.dtype) -> bool:
    """Whether Winograd's algorithm is faster with this many channels.

    It then serves maps of every size, where :func:`dilated_conv2d` leaves small ones to the
    library: there each call transforms the weight, which a few tiles do not repay, and here that is
    done once. The 3×3 convolutions of ResNet50's PSPNet took together, with one thread (AVX-512),
    by Winograd's algorithm, by the library, and by what ``dilated_conv2d`` takes for each map::

        batch  image   Winograd  library  as dilated_conv2d
        1      33²       19 ms    39 ms    39 ms
        1      65²       23 ms    55 ms    55 ms
        1      161²      83 ms   183 ms    95 ms
        8      33²      115 ms    88 ms    88 ms
        8      65²      162 ms   221 ms   219 ms

    What is slower are the convolutions of dilation 4 on maps of up to 9×9, whose phases fill at
    most half of a tile: 1.6 to 5 times with a batch of 8, at most 1.9 times with one image. It is
    not worth keeping their weights twice for images that small.
    """
    size = 64 * dilation
    out_channels, in_channels = weight.shape[:2]
    return torch.ops.pspfast.winograd_is_faster(
        1, in_channels, out_channels, size, size, dilation, dtype
    )


class FusedConv2d(nn.Module):
    """``relu(conv2d(x) + bias + residual)`` by the library, of any kernel and stride."""

    def __init__(
        self,
        conv: nn.Conv2d,
        weight: Tensor,
        bias: Tensor | None,
        relu: bool,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.out_channels = weight.shape[0]
        self.stride, self.dilation = list(conv.stride), list(conv.dilation)
        assert not isinstance(conv.padding, str)
        self.padding = list(conv.padding)
        self.relu = relu
        self.register_buffer("weight", self.converted(weight, dtype))
        self.register_buffer("bias", None if bias is None else bias.to(dtype))
        self.weight: Tensor
        self.bias: Tensor | None

    def converted(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """The weight as ``forward`` reads it."""
        return weight.to(dtype)

    def forward(self, x: Tensor, residual: Tensor | None = None, overwrite: bool = False) -> Tensor:
        """
        Args:
            x: ``[N, C, H, W]``.
            residual: ``[N, O, h, w]``, added to the result.
            overwrite: whether the result may take the residual's memory. On the CPU it then does,
                which saves writing another map: with four images a 1×1 convolution of 64 to 256
                channels takes 23 ms instead of 55, most of it to get fresh memory.
        """
        device = x.device.type
        compiling = torch.compiler.is_compiling()
        if device == "cuda" and self.relu and not compiling and _cudnn_takes(x.dtype):
            arguments = (self.bias, self.stride, self.padding, self.dilation, 1)
            if residual is None:
                return torch.cudnn_convolution_relu(x, self.weight, *arguments)
            return torch.cudnn_convolution_add_relu(x, self.weight, residual, 1.0, *arguments)
        # A compiler does not know the convolution that writes into its residual.
        is_known = residual is None or not compiling
        if device == "cpu" and is_known and _onednn_takes(x.dtype):
            op = torch.ops.mkldnn
            sizes = (self.padding, self.stride, self.dilation, 1)
            unary = "relu" if self.relu else "none"
            if residual is None:
                return op._convolution_pointwise(x, self.weight, self.bias, *sizes, unary, [], "")
            return op._convolution_pointwise_.binary(
                residual if overwrite else residual.clone(),
                x,
                self.weight,
                self.bias,
                *sizes,
                "add",
                None,
                unary,
                [],
                None,
            )
        out = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation)
        if residual is not None:
            out += residual
        return out.relu_() if self.relu else out


class FusedDilatedConv2d(FusedConv2d):
    """A 3×3 convolution of stride 1 by :func:`pspfast.ops.dilated_conv2d`."""

    def forward(self, x: Tensor, residual: Tensor | None = None, overwrite: bool = False) -> Tensor:
        return dilated_conv2d(
            x,
            self.weight,
            self.bias,
            dilation=self.dilation[0],
            residual=residual,
            relu=self.relu,
        )


class FusedWinogradConv2d(FusedConv2d):
    """The same on the CPU, its weight transformed once: four times the size, in float32."""

    def converted(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        return torch.ops.pspfast.winograd_weight(weight.float())

    def forward(self, x: Tensor, residual: Tensor | None = None, overwrite: bool = False) -> Tensor:
        return torch.ops.pspfast.winograd_conv2d(
            x, self.weight, self.out_channels, self.bias, self.dilation[0], residual, self.relu
        )


def _cudnn_takes(dtype: torch.dtype) -> bool:
    """Whether cuDNN's fused convolutions are there and take maps of this dtype."""
    return (
        torch.version.hip is None
        and torch.backends.cudnn.is_available()
        and torch.backends.cudnn.enabled
        and dtype in (torch.float32, torch.float16, torch.bfloat16)
    )


@backends.constant_when_compiled
def _onednn_takes(dtype: torch.dtype) -> bool:
    """Whether torch's oneDNN convolutions take maps of this dtype on this processor."""
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if dtype == torch.float16:
        return torch.ops.mkldnn._is_mkldnn_fp16_supported()
    return dtype == torch.float32

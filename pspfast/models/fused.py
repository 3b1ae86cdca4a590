"""Convolutions with frozen weights: BatchNorm folded in, bias, residual and ReLU fused."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from pspfast import backends
from pspfast.ops.dilated_conv2d import dilated_conv2d


def folded(conv: nn.Conv2d, bn: nn.BatchNorm2d | None) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution that does what BatchNorm after it does in evaluation."""
    bias = conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias
    weight, bias = conv.weight.detach().double(), bias.detach().double()
    if bn is None:
        return weight, bias
    assert bn.running_mean is not None and bn.running_var is not None
    mean, variance = bn.running_mean.double(), bn.running_var.double()
    scale, shift = (None if t is None else t.detach().double() for t in (bn.weight, bn.bias))
    return fuse_conv_bn_weights(weight, bias, mean, variance, bn.eps, scale, shift)


def fused_conv2d(
    conv: nn.Conv2d, bn: nn.BatchNorm2d | None, relu: bool, dtype: torch.dtype
) -> FusedConv2d:
    """The frozen convolution that is fastest where ``conv`` is, for maps of this dtype."""
    weight, bias = folded(conv, bn)
    return fused_conv2d_of(weight, bias, conv, relu, dtype)


def fused_conv2d_of(
    weight: Tensor, bias: Tensor | None, conv: nn.Conv2d, relu: bool, dtype: torch.dtype
) -> FusedConv2d:
    """The same with a weight and bias already folded, and strides and padding of ``conv``."""
    d = conv.dilation[0]
    is_dilated = (
        conv.kernel_size == (3, 3)
        and conv.stride == (1, 1)
        and conv.padding == conv.dilation == (d, d)
    )
    if not is_dilated:
        return FusedConv2d(weight, bias, conv, relu, dtype)
    # With fewer channels the library is faster: see winograd_is_faster in csrc/dilated_conv2d.cpp.
    is_wide = min(weight.shape[:2]) >= 16
    has_kernel = weight.device.type == "cpu" and backends.default("cpu") == "cpu"
    if is_wide and has_kernel and dtype != torch.float64:
        return FusedWinogradConv2d(weight, bias, conv, relu, dtype)
    return FusedDilatedConv2d(weight, bias, conv, relu, dtype)


class FusedConv2d(nn.Module):
    """``relu(conv2d(x) + bias + residual)`` by the library, of any kernel and stride."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        conv: nn.Conv2d,
        relu: bool,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.out_channels = weight.shape[0]
        self.stride, self.dilation = list(conv.stride), list(conv.dilation)
        assert not isinstance(conv.padding, str)
        self.padding = list(conv.padding)
        self.relu = relu
        self.register_buffer("weight", self.packed(weight, dtype))
        self.register_buffer("bias", None if bias is None else bias.to(dtype))
        self.weight: Tensor
        self.bias: Tensor | None

    def packed(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        return weight.to(dtype)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Where it can, it adds to the residual in place."""
        device = x.device.type
        if device == "cuda" and self.relu and not torch.compiler.is_compiling():
            arguments = (self.bias, self.stride, self.padding, self.dilation, 1)
            if residual is None:
                return torch.cudnn_convolution_relu(x, self.weight, *arguments)
            return torch.cudnn_convolution_add_relu(x, self.weight, residual, 1.0, *arguments)
        if device == "cpu" and _onednn_takes(x.dtype):
            op = torch.ops.mkldnn
            sizes = (self.padding, self.stride, self.dilation, 1)
            unary = "relu" if self.relu else "none"
            if residual is None:
                return op._convolution_pointwise(x, self.weight, self.bias, *sizes, unary, [], "")
            return op._convolution_pointwise_.binary(
                residual, x, self.weight, self.bias, *sizes, "add", None, unary, [], None
            )
        out = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation)
        if residual is not None:
            out += residual
        return out.relu_() if self.relu else out


class FusedDilatedConv2d(FusedConv2d):
    """A 3×3 convolution of stride 1 by :func:`pspfast.ops.dilated_conv2d`."""

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
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

    def packed(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        return torch.ops.pspfast.winograd_weight(weight.float())

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return torch.ops.pspfast.winograd_conv2d(
            x, self.weight, self.out_channels, self.bias, self.dilation[0], residual, self.relu
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

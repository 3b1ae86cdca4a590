"""Depthwise convolutions whose taps lie far apart against torch's in both of its layouts."""

import pytest
import torch
import torch.nn.functional as F

import pspfast  # noqa: F401  registers the operator

# C, H = W, k, dilation, at 512 pixels: the three of smp's DeepLabV3+ on ResNet-50, and one of the
# last stage of MobileNetV3 at an eighth of the image's size.
SHAPES = [
    (2048, 32, 3, 12),
    (2048, 32, 3, 24),
    (2048, 32, 3, 36),
    (960, 64, 5, 4),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@torch.inference_mode()
def test_forward(compare, shape, device) -> None:
    if device.type != "cpu":
        pytest.skip("the operator is of the CPU")
    channels, size, k, d = shape
    torch.manual_seed(0)
    x, weight = torch.randn(1, channels, size, size), torch.randn(channels, 1, k, k)
    options = {"padding": d * (k // 2), "dilation": d, "groups": channels}
    last = x.contiguous(memory_format=torch.channels_last)
    peers = {
        "conv2d contiguous": lambda: F.conv2d(x, weight, **options),
        "conv2d channels_last": lambda: F.conv2d(last, weight, **options),
    }

    def ours():
        return torch.ops.pspfast.depthwise_conv2d(last, weight, None, d, False)

    torch.testing.assert_close(ours(), peers["conv2d contiguous"](), rtol=1e-4, atol=1e-4)
    compare(ours, peers)

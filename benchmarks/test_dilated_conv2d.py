"""3x3 convolutions of PSPNet50 against torch's, in the faster of its layouts for each."""

import pytest
import torch
import torch.nn.functional as F

from pspfast.ops import dilated_conv2d

# C, O, H = W, dilation, at 473 pixels: head, auxiliary head, layer4, layer3, layer2, layer1, stem.
SHAPES = [
    (2048, 512, 60, 1),
    (1024, 256, 60, 1),
    (512, 512, 60, 4),
    (256, 256, 60, 2),
    (128, 128, 60, 1),
    (64, 64, 119, 1),
    (64, 64, 237, 1),
    (64, 128, 237, 1),
]


@pytest.fixture(params=SHAPES, ids=str)
def tensors(request, device):
    channels, out_channels, size, dilation = request.param
    torch.manual_seed(0)
    x = torch.randn(1, channels, size, size, device=device)
    weight = torch.randn(out_channels, channels, 3, 3, device=device) / (9 * channels) ** 0.5
    return x, weight, dilation


def in_both_layouts(function, *tensors):
    """Functions without arguments, by the name of the layout."""

    def laid_out(memory_format):
        copies = [t.contiguous(memory_format=memory_format) for t in tensors]
        return lambda: function(*copies)

    return {
        "conv2d contiguous": laid_out(torch.contiguous_format),
        "conv2d channels_last": laid_out(torch.channels_last),
    }


def relative_error(got, expected) -> float:
    return ((got.double() - expected).norm() / expected.norm()).item()


def assert_exact(got, eager, expected) -> None:
    """Within twice eager's error, of which TF32 makes more, and that of Winograd's algorithm."""
    assert relative_error(got, expected) <= 2 * relative_error(eager, expected) + 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.inference_mode()
def test_forward(compare, tensors, dtype, device) -> None:
    """As in optimize_for_inference: on the CPU the weight is transformed before."""
    x, weight, d = tensors
    exact = F.conv2d(x.double(), weight.double(), padding=d, dilation=d)
    x, weight = x.to(dtype), weight.to(dtype)
    peers = in_both_layouts(lambda x, w: F.conv2d(x, w, padding=d, dilation=d), x, weight)
    x = x.contiguous(memory_format=torch.channels_last)
    if device.type == "cpu":
        transformed = torch.ops.pspfast.winograd_weight(weight)
        arguments = (x, transformed, weight.shape[0], None, d, None, False)

        def ours():
            return torch.ops.pspfast.winograd_conv2d(*arguments)
    else:
        weight = weight.contiguous(memory_format=torch.channels_last)

        def ours():
            return dilated_conv2d(x, weight, dilation=d)

    assert_exact(ours(), peers["conv2d contiguous"](), exact)
    compare(ours, peers)


def test_forward_backward(compare, tensors) -> None:
    x, weight, d = tensors
    grad = torch.randn_like(F.conv2d(x, weight, padding=d, dilation=d))

    def step(convolve):
        def run(x, weight, grad):
            x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
            return torch.autograd.grad(convolve(x, weight), (x, weight), grad)

        return run

    peers = in_both_layouts(
        step(lambda x, w: F.conv2d(x, w, padding=d, dilation=d)), x, weight, grad
    )
    x, grad = (t.contiguous(memory_format=torch.channels_last) for t in (x, grad))
    ours = step(lambda x, w: dilated_conv2d(x, w, dilation=d))
    exact = step(lambda x, w: F.conv2d(x, w, padding=d, dilation=d))(
        x.double(), weight.double(), grad.double()
    )
    eager = peers["conv2d contiguous"]()
    for got, other, expected in zip(ours(x, weight, grad), eager, exact, strict=True):
        assert_exact(got, other, expected)
    compare(lambda: ours(x, weight, grad), peers, rounds=7)

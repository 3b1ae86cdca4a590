"""Training BatchNorm, residual and ReLU of PSPNet50's maps, two images of 473 pixels, in
channels_last, against torch's three steps."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pspfast.ops import batch_norm_relu

SHAPES = {"64x237": (2, 64, 237, 237), "256x119": (2, 256, 119, 119), "1024x60": (2, 1024, 60, 60)}


def ours(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None) -> Tensor:
    return batch_norm_relu(x, None, None, weight, bias, residual)


def eager(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None) -> Tensor:
    out = F.batch_norm(x, None, None, weight, bias, training=True)
    if residual is not None:
        out += residual
    return out.relu_()


def make(shape: tuple[int, ...], dtype: torch.dtype, with_residual: bool, device: torch.device):
    x, residual, grad = (
        torch.randn(shape, dtype=dtype, device=device).contiguous(memory_format=torch.channels_last)
        for _ in range(3)
    )
    weight, bias = torch.rand(shape[1], device=device), torch.randn(shape[1], device=device)
    return [x, weight, bias, residual if with_residual else None], grad


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("residual", [False, True], ids=["alone", "residual"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_forward_and_backward(compare, device, dtype, residual, shape) -> None:
    torch.manual_seed(0)
    tensors, grad = make(SHAPES[shape], dtype, residual, device)

    def step(function, tensors, grad) -> list[Tensor]:
        leaves = [t for t in tensors if t is not None]
        out = function(*tensors)
        return [out, *torch.autograd.grad(out, leaves, grad)]

    # Against float64: eager's bfloat16 rounds before the ReLU, and so cuts other gradients off.
    double = [None if t is None else t.double().requires_grad_() for t in tensors]
    for tensor in tensors:
        if tensor is not None:
            tensor.requires_grad_()
    pairs = zip(step(ours, tensors, grad), step(eager, double, grad.double()), strict=True)
    for got, expected in pairs:
        error = (got.double() - expected).norm() / expected.norm()
        assert error <= (1e-6 if dtype == torch.float32 else 5e-3)
    compare(lambda: step(ours, tensors, grad), {"eager": lambda: step(eager, tensors, grad)})

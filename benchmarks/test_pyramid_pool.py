"""pyramid_pool against one F.adaptive_avg_pool2d a level, eager and compiled."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pspfast.ops import pyramid_pool

BINS = (1, 2, 3, 6)
SHAPES = [(4, 2048, 64, 64), (1, 2048, 60, 60)]
MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}

pytestmark = [
    pytest.mark.parametrize("shape", SHAPES, ids=str),
    pytest.mark.parametrize("memory_format", MEMORY_FORMATS),
    pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str),
]


def level_by_level(x: Tensor) -> list[Tensor]:
    return [F.adaptive_avg_pool2d(x, b) for b in BINS]


def make_map(shape, memory_format, dtype, device) -> Tensor:
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=dtype, device=device)
    return x.contiguous(memory_format=MEMORY_FORMATS[memory_format])


def test_forward(compare, shape, memory_format, dtype, device) -> None:
    x = make_map(shape, memory_format, dtype, device)
    compiled = torch.compile(level_by_level)
    with torch.inference_mode():
        torch.testing.assert_close(
            pyramid_pool(x, BINS), torch.cat([p.flatten(2) for p in level_by_level(x)], 2)
        )
        compare(
            lambda: pyramid_pool(x, BINS),
            {"eager": lambda: level_by_level(x), "torch.compile": lambda: compiled(x)},
        )


def test_forward_backward(compare, shape, memory_format, dtype, device) -> None:
    x = make_map(shape, memory_format, dtype, device).requires_grad_()
    compiled = torch.compile(level_by_level)
    grads = [torch.randn_like(p) for p in level_by_level(x)]
    pooled = pyramid_pool(x, BINS)
    grad = torch.empty_like(pooled).copy_(torch.cat([g.flatten(2) for g in grads], 2))

    def ours() -> Tensor:
        return torch.autograd.grad(pyramid_pool(x, BINS), x, grad)[0]

    def peer(function) -> Tensor:
        return torch.autograd.grad(function(x), x, grads)[0]

    # Against float32: eager adds the levels' gradients in the dtype of x, and loses digits of
    # bfloat16 where they cancel.
    exact = torch.autograd.grad(level_by_level(x.float()), x, [g.float() for g in grads])[0]
    torch.testing.assert_close(ours(), exact)
    compare(ours, {"eager": lambda: peer(level_by_level), "torch.compile": lambda: peer(compiled)})

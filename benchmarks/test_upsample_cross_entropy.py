"""upsample_cross_entropy against interpolation and cross-entropy, eager and compiled."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pspfast.ops import upsample_cross_entropy

# Batch, classes, resolution of the logits and of the image: ADE20K, VOC2012, Cityscapes.
SHAPES = [(2, 150, 60, 473), (2, 21, 60, 473), (2, 19, 90, 713)]
# A round takes a second.
ROUNDS = 7

pytestmark = [
    pytest.mark.parametrize("shape", SHAPES, ids=str),
    pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str),
]


def upsample(logits: Tensor, target: Tensor) -> Tensor:
    return F.interpolate(logits, target.shape[1:], mode="bilinear", align_corners=True)


def by_eager(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(upsample(logits, target), target, ignore_index=255)


def by_eager_with_labels(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    upsampled = upsample(logits, target)
    return F.cross_entropy(upsampled, target, ignore_index=255), upsampled.argmax(1)


def make_inputs(shape, dtype, device) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    batch, classes, resolution, size = shape
    logits = 3 * torch.randn(batch, classes, resolution, resolution, device=device)
    target = torch.randint(0, classes, (batch, size, size), device=device)
    target[:, : size // 20] = 255
    return logits.to(dtype), target


def test_forward_backward(compare, shape, dtype, device) -> None:
    logits, target = make_inputs(shape, dtype, device)
    logits.requires_grad_()
    compiled = torch.compile(by_eager)

    def step(function) -> Tensor:
        return torch.autograd.grad(function(logits, target), logits)[0]

    exact = logits.detach().float().requires_grad_()
    expected = torch.autograd.grad(by_eager(exact, target), exact)[0]
    tolerance = 1e-4 if dtype == torch.float32 else 1e-2
    assert (step(upsample_cross_entropy) - expected).norm() <= tolerance * expected.norm()
    compare(
        lambda: step(upsample_cross_entropy),
        {"eager": lambda: step(by_eager), "torch.compile": lambda: step(compiled)},
        ROUNDS,
    )


def test_forward_with_labels(compare, shape, dtype, device) -> None:
    logits, target = make_inputs(shape, dtype, device)
    compiled = torch.compile(by_eager_with_labels)

    def ours() -> tuple[Tensor, Tensor]:
        return upsample_cross_entropy(logits, target, return_argmax=True)

    with torch.inference_mode():
        loss, labels = by_eager_with_labels(logits.float(), target)
        torch.testing.assert_close(ours()[0], loss)
        assert (ours()[1] == labels).double().mean() > 0.9999
        compare(
            ours,
            {
                "eager": lambda: by_eager_with_labels(logits, target),
                "torch.compile": lambda: compiled(logits, target),
            },
            ROUNDS,
        )

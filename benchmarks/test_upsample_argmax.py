"""upsample_argmax and upsample_softmax against interpolation and argmax or softmax."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pspfast.ops import upsample_argmax, upsample_softmax

# Batch, classes, resolution of the logits and of the image: ADE20K, VOC2012, Cityscapes.
SHAPES = [(2, 150, 60, 473), (2, 21, 60, 473), (2, 19, 90, 713)]
# A round takes a second.
ROUNDS = 7

pytestmark = [
    pytest.mark.parametrize("shape", SHAPES, ids=str),
    pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str),
]


def upsample(logits: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(logits, size, mode="bilinear", align_corners=True)


def argmax(logits: Tensor, size: tuple[int, int]) -> Tensor:
    return upsample(logits, size).argmax(1)


def softmax(logits: Tensor, size: tuple[int, int], out: Tensor) -> Tensor:
    return out.add_(upsample(logits, size).softmax(1))


def make_logits(shape, dtype, device) -> tuple[Tensor, tuple[int, int]]:
    torch.manual_seed(0)
    batch, classes, resolution, size = shape
    logits = 3 * torch.randn(batch, classes, resolution, resolution, device=device)
    return logits.to(dtype), (size, size)


def test_argmax(compare, shape, dtype, device) -> None:
    logits, size = make_logits(shape, dtype, device)
    compiled = torch.compile(argmax)
    with torch.inference_mode():
        expected = argmax(logits.float(), size)
        assert (upsample_argmax(logits, size) == expected).double().mean() > 0.9999
        compare(
            lambda: upsample_argmax(logits, size),
            {
                "eager": lambda: argmax(logits, size),
                "torch.compile": lambda: compiled(logits, size),
            },
            ROUNDS,
        )


def test_softmax_added(compare, shape, dtype, device) -> None:
    """Into a window of an image's accumulator, as sliding-window evaluation does."""
    logits, size = make_logits(shape, dtype, device)
    canvas = torch.zeros(*logits.shape[:2], size[0] + 40, size[1] + 60, device=device)
    window = canvas[:, :, 20:-20, 30:-30]
    compiled = torch.compile(softmax)
    with torch.inference_mode():
        torch.testing.assert_close(
            upsample_softmax(logits, size), upsample(logits.float(), size).softmax(1)
        )
        compare(
            lambda: upsample_softmax(logits, size, out=window),
            {
                "eager": lambda: softmax(logits, size, window),
                "torch.compile": lambda: compiled(logits, size, window),
            },
            ROUNDS,
        )

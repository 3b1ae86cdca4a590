"""What the ops do in PSPNet50, as functions of tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pspfast.ops import (
    batch_norm_relu,
    dilated_conv2d,
    pyramid_concat,
    pyramid_conv2d,
    pyramid_pool,
    upsample_argmax,
    upsample_concat_conv2d,
    upsample_cross_entropy,
    upsample_softmax,
)

BINS = (1, 2, 3, 6)
CELLS = sum(b * b for b in BINS)


@dataclass(frozen=True)
class Size:
    """Of PSPNet50: images, their side and that of the features, and a divisor of all channels."""

    batch: int
    image: int
    features: int
    thinner: int = 1
    classes: int = 150


GPU = Size(batch=16, image=473, features=60)
# For a try without a GPU: seconds in all.
CPU = Size(batch=1, image=65, features=9, thinner=16, classes=21)


@dataclass(frozen=True)
class Case:
    """A function of tensors of these shapes; gradients are taken of all of them, or of none."""

    function: Callable[..., Tensor]
    shapes: Sequence[tuple[int, ...]]
    has_gradient: bool = True

    def tensors(self, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
        """Random, channels_last; vectors are parameters, in float32."""

        def make(shape: tuple[int, ...]) -> Tensor:
            # Weights of products make results of size 1.
            scale = (9 * shape[1]) ** -0.5 if shape[2:] == (3, 3) else 1.0
            x = torch.randn(shape, device=device) * scale
            is_map = len(shape) == 4
            x = x.contiguous(memory_format=torch.channels_last) if is_map else x
            return x.to(dtype) if len(shape) > 1 else x

        return [make(shape).requires_grad_(self.has_gradient) for shape in self.shapes]


def cases(size: Size) -> dict[str, Case]:
    n, side, thin, classes = size.batch, size.features, size.thinner, size.classes
    full = (size.image, size.image)
    target = torch.arange(n * size.image * size.image).view(n, *full) % classes

    def fill(channels: int) -> int:
        return channels // thin

    def maps(channels: int) -> tuple[int, ...]:
        return (n, fill(channels), side, side)

    def convolution(channels: int, out_channels: int, dilation: int) -> Case:
        weight = (fill(out_channels), fill(channels), 3, 3)
        return Case(
            lambda x, w: dilated_conv2d(x, w, dilation=dilation, relu=True),
            (maps(channels), weight),
        )

    def cross_entropy(logits: Tensor) -> Tensor:
        return upsample_cross_entropy(logits, target.to(logits.device))

    logits = (n, classes, side, side)
    priors = (n, fill(512), CELLS)
    return {
        "pyramid_pool": Case(lambda x: pyramid_pool(x, BINS), (maps(2048),)),
        "pyramid_concat": Case(lambda x, p: pyramid_concat(x, p, BINS), (maps(2048), priors)),
        "pyramid_conv2d": Case(
            lambda x, p, w: pyramid_conv2d(x, p, w, BINS),
            (maps(2048), priors, (fill(512), fill(4096), 3, 3)),
        ),
        "upsample_concat_conv2d": Case(
            lambda *given: upsample_concat_conv2d(given[:-1], given[-1]),
            (
                *((n, fill(512), side >> i, side >> i) for i in range(4)),
                (fill(512), 4 * fill(512), 3, 3),
            ),
        ),
        "dilated_conv2d 2048→512": convolution(2048, 512, 1),
        "dilated_conv2d 512→512 d4": convolution(512, 512, 4),
        "dilated_conv2d 256→256 d2": convolution(256, 256, 2),
        "batch_norm_relu 1024 and residual": Case(
            lambda x, r, w, b: batch_norm_relu(x, None, None, w, b, r),
            (maps(1024), maps(1024), (fill(1024),), (fill(1024),)),
        ),
        "upsample_cross_entropy": Case(cross_entropy, (logits,)),
        "upsample_argmax": Case(lambda x: upsample_argmax(x, full), (logits,), False),
        "upsample_softmax": Case(lambda x: upsample_softmax(x, full), (logits,), False),
    }

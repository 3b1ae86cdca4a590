"""Convolution over maps of several sizes, at the shapes of published heads, against interpolation,
concatenation and convolution."""

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pspfast.ops import upsample_concat_conv2d


class Head(NamedTuple):
    maps: tuple[tuple[int, int, int], ...]  # channels and size of each
    out_channels: int
    kernel_size: int


HEADS = {
    # The fusion of UPerNet's levels.
    "UPerNet": Head(tuple((512, s, s) for s in (128, 64, 32, 16)), 512, 3),
    "sizes that do not divide": Head(
        ((256, 93, 131), (256, 47, 66), (256, 24, 33), (256, 12, 17)), 256, 3
    ),
    # Its linear_fuse.
    "SegFormer": Head(tuple((768, s, s) for s in (128, 64, 32, 16)), 768, 1),
    # The decoder's first convolution.
    "DeepLabV3+": Head(((48, 128, 128), (256, 32, 32)), 256, 3),
}
# A round takes seconds.
ROUNDS = 7


def eager(maps: list[Tensor], weight: Tensor) -> Tensor:
    size = maps[0].shape[2:]
    upsampled = [F.interpolate(m, size, mode="bilinear", align_corners=False) for m in maps[1:]]
    return F.conv2d(torch.cat([maps[0], *upsampled], 1), weight, padding=weight.shape[2] // 2)


def make(name: str, device: torch.device, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    torch.manual_seed(0)
    head = HEADS[name]
    shapes = [(1, *shape) for shape in head.maps]
    channels = sum(shape[1] for shape in shapes)
    k = head.kernel_size
    tensors = [torch.randn(shape) for shape in (*shapes, (head.out_channels, channels, k, k))]
    tensors[-1] /= (channels * k * k) ** 0.5
    *maps, weight = (
        t.to(device, dtype).contiguous(memory_format=torch.channels_last) for t in tensors
    )
    return maps, weight


def assert_exact(ours: Tensor, other: Tensor, exact: Tensor) -> None:
    """Within twice eager's error, of which TF32 makes more, or that of Winograd's algorithm."""
    error, allowed = ((out.double() - exact).norm() for out in (ours, other))
    bound = max(2 * allowed, 1e-5 * exact.norm())
    assert error <= bound, f"error {error:.3g}, eager's {allowed:.3g}"


# In bfloat16 the smallest stands for all.
@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, torch.float32) for name in HEADS), ("DeepLabV3+", torch.bfloat16)],
    ids=str,
)
def test_forward(compare, name, dtype, device) -> None:
    maps, weight = make(name, device, dtype)
    compiled = torch.compile(eager)
    with torch.inference_mode():
        # Some filters are as good as all, which take seconds in float64.
        exact = eager([m.double() for m in maps], weight[:16].double())
        ours, other = upsample_concat_conv2d(maps, weight), eager(maps, weight)
        assert_exact(ours[:, :16], other[:, :16], exact)
        compare(
            lambda: upsample_concat_conv2d(maps, weight),
            {
                "eager": lambda: eager(maps, weight),
                "torch.compile": lambda: compiled(maps, weight),
            },
            ROUNDS,
        )


@pytest.mark.parametrize("name", HEADS)
def test_forward_backward(compare, name, device) -> None:
    maps, weight = make(name, device, torch.float32)
    leaves = [t.requires_grad_() for t in (*maps, weight)]
    grad = torch.randn_like(eager(maps, weight))

    def step(function) -> tuple[Tensor, ...]:
        return torch.autograd.grad(function(maps, weight), leaves, grad)

    # On a GPU products are in TF32, of 11 bits.
    tolerance = 1e-4 if device.type == "cpu" else 1e-2
    for got, expected in zip(step(upsample_concat_conv2d), step(eager), strict=True):
        assert (got - expected).norm() <= tolerance * expected.norm()
    compiled = torch.compile(eager)
    compare(
        lambda: step(upsample_concat_conv2d),
        {"eager": lambda: step(eager), "torch.compile": lambda: step(compiled)},
        ROUNDS,
    )

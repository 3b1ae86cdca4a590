"""Winograd's form of wide convolutions, against torch's own."""

import pytest
import torch
import torch.nn.functional as F
from randomised import relative_difference
from torch import nn
from torch_release import TORCH

import pspfast
from pspfast.deployment.winograd import conv3x3, fits, replace_convolutions


@pytest.mark.parametrize("dilation", [1, 2, 4, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_convolution(dilation: int, dtype: torch.dtype) -> None:
    weight = torch.randn(5, 7, 3, 3, dtype=dtype)
    for size in ((60, 60), (9, 13), (1, 1), (2, 3), (3, 33), (17, 4)):
        x = torch.randn(2, 7, *size, dtype=dtype)
        expected = F.conv2d(x.double(), weight.double(), padding=dilation, dilation=dilation)
        got = conv3x3(x, weight, None, dilation)
        assert got.dtype == dtype
        assert relative_difference(got, expected) < (1e-5 if dtype == torch.float32 else 1e-13)


def test_wide_convolutions_of_stride_1_are_replaced() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 256, 3, padding=1),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.Sequential(nn.Conv2d(256, 300, 3, padding=2, dilation=2, bias=False)),
        nn.Conv2d(300, 256, 3, padding=1, dilation=2),
        nn.Conv2d(256, 256, 1),
        nn.Conv2d(256, 256, 3, stride=2, padding=1),
        nn.Conv2d(256, 512, 3, padding=1, groups=2),
    )
    x = torch.randn(1, 3, 15, 18)
    with torch.no_grad():
        expected = network(x)
        replace_convolutions(network)
        assert [type(layer) is nn.Conv2d for layer in network] == [
            *(True, False, False, True, True, True, True)
        ]
        assert type(network[2][0]) is not nn.Conv2d
        assert relative_difference(network(x), expected) < 1e-5
    # Rounding errors would be multiplied.
    half = torch.zeros(256, 256, 3, 3, dtype=torch.bfloat16)
    assert not fits(half, [1], [1], [1], 1)
    assert fits(half.float(), [1], [1], [1], 1)


class Wide(nn.Module):
    """Of a decoder: a convolution by itself, and one over maps, a part of them as wide."""

    def __init__(self) -> None:
        super().__init__()
        self.lateral = nn.Conv2d(256, 256, 3, padding=1)
        self.fuse = nn.Conv2d(256 + 128, 256, 3, padding=1)

    def forward(self, fine: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
        coarse = F.interpolate(coarse, fine.shape[2:], mode="bilinear")
        return self.fuse(torch.cat([self.lateral(fine), coarse], 1))


@torch.no_grad()
def test_rewritten_programs() -> None:
    model = Wide().eval()
    inputs = [torch.randn(2, 256, 16, 24), torch.randn(2, 128, 4, 6)]
    expected = model(*inputs)
    if TORCH < (2, 12):
        with pytest.raises(RuntimeError, match=r"got .*; winograd=False leaves them out"):
            pspfast.rewritten_program(model, inputs, dynamic=True)
    for winograd, direct in ((True, 0), (False, 2)):
        if winograd and TORCH < (2, 12):
            continue
        program = pspfast.rewritten_program(model, inputs, dynamic=True, winograd=winograd)
        assert relative_difference(program.module()(*inputs), expected) < 1e-5
        weights = [
            tuple(node.args[1].meta["val"].shape[1:])
            for node in program.graph.nodes
            if str(node.target).startswith("aten.conv")
        ]
        assert weights.count((256, 3, 3)) == direct
        assert weights.count((256, 3, 1)) == (12 if winograd else 0)

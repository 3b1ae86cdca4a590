"""The Triton kernels of upsample_add in the interpreter, against float64 PyTorch."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from maps import BFLOAT, FLOAT, HALF, both_formats
from torch import Tensor

from pspfast.kernels.upsample_add import upsample_add_backward, upsample_add_forward


@dataclass(frozen=True)
class Case:
    """Mixed maps [N, rows, cols, k, k, O] of each level become a map [N, O, H, W]."""

    batch: int
    channels: int
    size: tuple[int, int]
    levels: tuple[tuple[int, int], ...]
    kernel_size: int = 3
    align_corners: bool = False
    nearest: bool = False
    dtype: torch.dtype = FLOAT

    def mixed_sizes(self) -> list[tuple[int, ...]]:
        k = self.kernel_size
        return [(self.batch, *level, k, k, self.channels) for level in self.levels]


# The interpreter takes its time: few rows, few programs.
CASES = [
    Case(2, 3, (4, 8), ((2, 4), (1, 2))),
    Case(1, 3, (5, 7), ((3, 4), (2, 2)), align_corners=True),
    Case(1, 17, (4, 6), ((2, 3),), dtype=HALF),
    Case(1, 3, (4, 6), ((2, 3),), dtype=BFLOAT),
    Case(2, 3, (4, 8), ((2, 4),), kernel_size=1),
    Case(1, 3, (4, 8), ((2, 4), (3, 5)), nearest=True),
    Case(1, 2, (3, 5), ((3, 5), (1, 1)), nearest=True, kernel_size=1, dtype=BFLOAT),
    # More channels than two programs hold, 32 each.
    Case(1, 65, (2, 3), ((1, 2),)),
    # More columns than a program holds, 64, and more sources than it gathers for, 5.
    Case(1, 2, (2, 70), ((1, 35),)),
    Case(1, 2, (2, 70), ((1, 33),), nearest=True),
    # One source that more columns than a program's read.
    Case(1, 1, (2, 130), ((1, 2), (2, 1)), align_corners=True),
    # More levels than a launch takes, 4.
    Case(1, 2, (3, 4), ((1, 1), (1, 2), (2, 1), (2, 2), (3, 4))),
    Case(1, 1, (1, 1), ((1, 1),)),
]


def interpolated(case: Case, mixed: Sequence[Tensor]) -> Tensor:
    """F.interpolate of each level and tap, moved by the tap, zeros outside of the map."""
    k, (height, width) = case.kernel_size, case.size
    options = (
        {"mode": "nearest"}
        if case.nearest
        else {
            "mode": "bilinear",
            "align_corners": case.align_corners,
        }
    )
    total = mixed[0].new_zeros(case.batch, case.channels, height, width)
    for level in mixed:
        for ky in range(k):
            for kx in range(k):
                # The sources of contiguous float64 maps are others.
                tap = level[:, :, :, ky, kx].movedim(-1, 1).to(memory_format=torch.channels_last)
                padded = F.pad(F.interpolate(tap, case.size, **options), [k // 2] * 4)
                total = total + padded[:, :, ky : ky + height, kx : kx + width]
    return total


@both_formats
@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward_and_backward(case: Case, channels_last: bool) -> None:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    mixed = [torch.randn(size).to(case.dtype) for size in case.mixed_sizes()]
    base = torch.randn(case.batch, case.channels, *case.size).to(case.dtype)
    base = base.contiguous(memory_format=memory_format)
    bias = torch.randn(case.channels).to(case.dtype)
    exact = [m.double().requires_grad_() for m in mixed]
    expected = interpolated(case, exact)
    options = (case.size, case.align_corners, case.nearest)
    # The interpreter truncates to bfloat16.
    half_ulps = 2 if case.dtype == BFLOAT else 1
    rounding = {"rtol": max(0.51 * half_ulps * torch.finfo(case.dtype).eps, 1e-6), "atol": 4e-6}

    got = upsample_add_forward(mixed[0], None, mixed, None, *options, False, channels_last)
    assert got.is_contiguous(memory_format=memory_format) and got.dtype == case.dtype
    torch.testing.assert_close(got.double(), expected.detach(), **rounding)

    got = upsample_add_forward(mixed[0], base, mixed, bias, *options, True, channels_last)
    finished = (expected + base.double() + bias.double()[:, None, None]).relu().detach()
    # Between launches sums are rounded.
    split = {"rtol": rounding["rtol"] * (2 if len(mixed) > 4 else 1), "atol": 8e-6}
    torch.testing.assert_close(got.double(), finished, **split)

    grad = torch.randn_like(base)
    expected.backward(grad.double())
    sizes = [s for level in case.levels for s in level]
    grads = upsample_add_backward(
        grad, sizes, case.kernel_size, case.align_corners, case.nearest, case.dtype
    )
    wanted = torch.cat([e.grad.flatten() for e in exact])
    torch.testing.assert_close(grads.double(), wanted, rtol=rounding["rtol"], atol=2e-5)


def test_sums_in_float32_of_a_map_of_16_bits() -> None:
    case = Case(1, 3, (4, 6), ((2, 3),))
    mixed = [torch.randn(size) for size in case.mixed_sizes()]
    base = torch.randn(1, 3, 4, 6).bfloat16()
    got = upsample_add_forward(mixed[0], base, mixed, None, case.size, False, False, False, False)
    assert got.dtype == BFLOAT
    expected = interpolated(case, [m.double() for m in mixed]) + base.double()
    torch.testing.assert_close(got.double(), expected, rtol=1.02 * 2**-7, atol=4e-6)
    grads = upsample_add_backward(base, [2, 3], 3, False, False, FLOAT)
    assert grads.dtype == FLOAT


def test_nothing_in_nothing_out() -> None:
    none = torch.empty(0, 2, 2, 3, 3, 4)
    out = upsample_add_forward(none, None, [none], None, (4, 4), False, False, False, True)
    assert out.shape == (0, 4, 4, 4)
    assert upsample_add_backward(out, [2, 2], 3, False, False, FLOAT).shape == (0,)

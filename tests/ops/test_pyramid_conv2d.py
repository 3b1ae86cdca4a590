from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from concatenation import concatenation
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from op_tester import OpTester, exact_dtype, moved, with_reference
from torch import Tensor

from pspfast.ops import pyramid_conv2d, pyramid_mix

BINS = (1, 2, 3, 6)


def oracle(
    x: Tensor,
    priors: Tensor,
    weight: Tensor,
    bins: tuple[int, ...],
    align_corners: bool,
    bias: Tensor | None = None,
    levels_first: bool = False,
) -> Tensor:
    maps = concatenation(x, priors, bins, align_corners)
    if levels_first:
        maps = maps.roll(-x.shape[1], dims=1)
    return F.conv2d(maps, weight, bias, padding=weight.shape[2] // 2)


class TestPyramidConv2d(OpTester):
    float32_error = 1e-5  # Of dilated_conv2d.

    """Cases are (x, priors, weight, bias), (bins, align_corners, levels_first)."""

    cases: ClassVar = [
        ([(2, 2, 4, 3), (2, 1, 5), (2, 4, 3, 3), (2,)], ((1, 2), True, False)),
        ([(1, 1, 3, 4), (1, 2, 5), (2, 5, 3, 3), (2,)], ((1, 2), False, True)),
        ([(2, 2, 2, 3), (2, 3, 13), (3, 8, 1, 1), (3,)], ((2, 3), True, True)),
        ([(2, 16, 12, 12), (2, 9, 50), (37, 52, 3, 3), (37,)], (BINS, True, False)),
        ([(1, 5, 23, 17), (1, 40, 50), (64, 165, 3, 3), (64,)], (BINS, False, True)),
        ([(1, 3, 5, 131), (1, 7, 50), (20, 31, 1, 1), (20,)], (BINS, False, False)),
        ([(2, 4, 1, 1), (2, 3, 50), (5, 16, 3, 3), (5,)], (BINS, True, False)),
        ([(1, 4, 2, 1), (1, 3, 9), (6, 7, 3, 3), (6,)], ((3,), False, False)),
        ([(0, 4, 8, 8), (0, 2, 50), (6, 12, 3, 3), (6,)], (BINS, True, False)),
    ]
    overloads: ClassVar = [
        (torch.ops.pspfast.pyramid_mix, [(2, 4, 50), (6, 19, 3, 3)], (BINS, False)),
        (torch.ops.pspfast.pyramid_mix, [(2, 4, 50), (6, 19, 1, 1)], (BINS, True)),
        (
            torch.ops.pspfast.pyramid_upsample_add,
            [(2, 6, 7, 5), (2, 50, 3, 3, 6), (6,)],
            (BINS, True, False),
        ),
        (torch.ops.pspfast.pyramid_upsample_add_backward, [(2, 6, 7, 5)], (BINS, True, 3)),
    ]

    def op(self, x: Tensor, priors: Tensor, weight: Tensor, bias: Tensor, *args: Any) -> Tensor:
        bins, align_corners, levels_first = args
        return pyramid_conv2d(
            x, priors, weight, bins, align_corners, bias=bias, levels_first=levels_first
        )

    def reference(
        self, x: Tensor, priors: Tensor, weight: Tensor, bias: Tensor, *args: Any
    ) -> Tensor:
        bins, align_corners, levels_first = args
        return oracle(x, priors, weight, bins, align_corners, bias, levels_first)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    size=st.tuples(*[st.integers(1, 24)] * 2),
    bins=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    channels=st.tuples(*[st.integers(1, 36)] * 3),
    kernel=st.sampled_from([1, 3]),
    align_corners=st.booleans(),
    levels_first=st.booleans(),
    memory_formats=st.tuples(
        *[st.sampled_from([torch.contiguous_format, torch.channels_last])] * 2
    ),
)
def test_any_size_and_any_bins(
    device: torch.device,
    size: tuple[int, int],
    bins: list[int],
    channels: tuple[int, int, int],
    kernel: int,
    align_corners: bool,
    levels_first: bool,
    memory_formats: tuple[torch.memory_format, torch.memory_format],
) -> None:
    in_, reduction, out = channels
    dtype = exact_dtype(device)
    x = torch.randn(2, in_, *size).to(device, dtype)
    priors = torch.randn(2, reduction, sum(b * b for b in bins)).to(device, dtype)
    weight = torch.randn(out, in_ + len(bins) * reduction, kernel, kernel).to(device, dtype)
    x = x.contiguous(memory_format=memory_formats[0])
    weight = weight.contiguous(memory_format=memory_formats[1])
    inputs = [t.requires_grad_() for t in (x, priors, weight)]
    ours = pyramid_conv2d(*inputs, bins, align_corners, levels_first=levels_first)
    expected = oracle(*inputs, tuple(bins), align_corners, levels_first=levels_first)
    grad = torch.randn_like(expected)
    bound = 1e-7 if dtype == torch.float64 else 1e-4
    for got, other in zip(
        (ours, *torch.autograd.grad(ours, inputs, grad)),
        (expected, *torch.autograd.grad(expected, inputs, grad)),
        strict=True,
    ):
        assert (got - other).norm() <= bound * other.norm()


@pytest.mark.parametrize("wanted", [0, 1, 2])
def test_any_gradient_alone(wanted: int, device: torch.device) -> None:
    shapes = [(2, 3, 7, 5), (2, 4, 50), (6, 19, 3, 3)]
    inputs = [torch.randn(shape).to(device) for shape in shapes]
    leaf = inputs[wanted].requires_grad_()
    grad = torch.randn(2, 6, 7, 5).to(device)
    torch.testing.assert_close(
        torch.autograd.grad(pyramid_conv2d(*inputs, BINS), leaf, grad),
        torch.autograd.grad(oracle(*inputs, BINS, True), leaf, grad),
        rtol=1e-5,
        atol=1e-4,
    )


def test_mix_backward_contract() -> None:
    """The one op without a gradient of its own: double backward goes through matrix products."""
    tensors = [torch.randn(s) for s in [(2, 50, 3, 3, 6), (6, 3, 3, 3), (2, 4, 50), (6, 19, 3, 3)]]
    torch.library.opcheck(torch.ops.pspfast.pyramid_mix_backward, (*tensors, BINS, False))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_relu(memory_format: torch.memory_format) -> None:
    shapes = [(2, 2, 4, 3), (2, 1, 5), (3, 4, 3, 3), (3,)]
    x, *others = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes)
    x = x.detach().contiguous(memory_format=memory_format).requires_grad_()

    def op(x: Tensor, priors: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return pyramid_conv2d(x, priors, weight, (1, 2), bias=bias, relu=True)

    torch.testing.assert_close(
        op(x, *others), oracle(x, *others[:2], (1, 2), True, others[2]).relu()
    )
    torch.autograd.gradcheck(op, (x, *others))
    torch.autograd.gradgradcheck(op, (x, *others))


def test_relu_keeps_nan(device: torch.device) -> None:
    shapes = [(1, 3, 7, 5), (1, 4, 50), (6, 19, 1, 1)]
    inputs = [torch.randn(shape).to(device) for shape in shapes]
    inputs[0][0, 0, 2, 3] = torch.nan
    got = pyramid_conv2d(*inputs, BINS, relu=True)
    assert got[0, :, 2, 3].isnan().all()
    assert got.isnan().sum() == 6


X, PRIORS, WEIGHT = torch.zeros(1, 3, 8, 8), torch.zeros(1, 2, 50), torch.zeros(4, 11, 3, 3)
BAD_INPUTS = [
    ({"x": X[0]}, ValueError, r"x: expected \[N, C, H, W\], got shape \[3, 8, 8\]"),
    ({"x": X.long()}, TypeError, "x: expected float32"),
    ({"bins": ()}, ValueError, "bins: expected 1 to 8 levels, got 0"),
    ({"priors": PRIORS[0]}, ValueError, r"priors: expected \[N, R, S\] with N = 1 and S = 50, got"),
    ({"priors": PRIORS.double()}, TypeError, "priors: expected torch.float32 as x, got"),
    (
        {"weight": WEIGHT[:, 1:]},
        ValueError,
        r"weight: expected .* C \+ L R = 11 .* \[4, 10, 3, 3\]",
    ),
    ({"weight": WEIGHT[..., :2]}, ValueError, "weight: expected .* k = 1 or 3"),
    ({"weight": torch.zeros(4, 11, 5, 5)}, ValueError, "weight: expected .* k = 1 or 3"),
    ({"weight": WEIGHT.double()}, TypeError, "weight: expected torch.float32 as x, got"),
    ({"bias": torch.zeros(3)}, ValueError, r"bias: expected \[O\] with O = 4, got shape \[3\]"),
    ({"bias": torch.zeros(4).half()}, TypeError, "bias: expected torch.float32 as x, got"),
]


@with_reference
@pytest.mark.parametrize("bad", BAD_INPUTS, ids=lambda bad: bad[2][:20])
def test_errors(device: torch.device, bad: tuple[Any, ...]) -> None:
    changed, error, message = bad
    arguments = {"x": X, "priors": PRIORS, "weight": WEIGHT, "bins": BINS} | changed
    with pytest.raises(error, match=f"^pyramid_conv2d: {message}"):
        pyramid_conv2d(**moved(arguments, device))


def test_errors_of_the_ops_behind_it() -> None:
    ops = torch.ops.pspfast
    mixed = torch.zeros(1, 50, 3, 3, 4)
    base = torch.zeros(1, 4, 8, 8)
    with pytest.raises(
        ValueError, match=r"^pyramid_upsample_add: mixed: expected \[N, S, k, k, O\]"
    ):
        ops.pyramid_upsample_add(base, mixed[..., :3], None, BINS, True, False)
    with pytest.raises(
        ValueError, match=r"^pyramid_upsample_add: mixed: expected Float, got Double"
    ):
        ops.pyramid_upsample_add(base, mixed.double(), None, BINS, True, False)
    with pytest.raises(ValueError, match=r"^pyramid_upsample_add: bias: expected \[O\] with O = 4"):
        ops.pyramid_upsample_add(base, mixed, torch.zeros(3), BINS, True, False)
    with pytest.raises(
        ValueError, match=r"^pyramid_upsample_add_backward: kernel_size: .* got 2x2"
    ):
        ops.pyramid_upsample_add_backward(base, BINS, True, 2)
    with pytest.raises(ValueError, match=r"^pyramid_mix: weight: expected at least L R = 8 input"):
        ops.pyramid_mix(PRIORS, WEIGHT[:, :7], BINS, False)
    with pytest.raises(ValueError, match=r"^pyramid_mix_backward: grad_mixed: expected shape"):
        ops.pyramid_mix_backward(mixed[:, :1], WEIGHT[:, :3], PRIORS, WEIGHT, BINS, False)
    with pytest.raises(ValueError, match=r"^pyramid_mix_backward: grad_weight_x: expected shape"):
        ops.pyramid_mix_backward(mixed, WEIGHT, PRIORS, WEIGHT, BINS, False)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_mixed_priors_are_not_rounded_to_the_maps_type(dtype: torch.dtype, autocast: bool) -> None:
    """As a GPU computes them, by products of matrices."""
    priors, weight = torch.randn(2, 7, 50).to(dtype), torch.randn(5, 11 + 4 * 7, 3, 3).to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        mixed, weight_x = pyramid_mix.mix_by_matmul(priors, weight, BINS, False)
    exact, _ = pyramid_mix.mix_by_matmul(priors.double(), weight.double(), BINS, False)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed.double(), exact, rtol=1e-5, atol=1e-5)
    assert torch.equal(weight_x, weight[:, :11])

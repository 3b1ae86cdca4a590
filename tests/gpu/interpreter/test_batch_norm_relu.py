"""The Triton kernels of batch_norm_relu in the interpreter, against float64 PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pspfast.kernels import batch_norm_relu as maps
from pspfast.kernels import batch_norm_statistics as launchers

EPS = 1e-5
CHANNEL_DIMS = (0, 2, 3)
# Whole tiles; pixels and channels that end within one; fewer of both than a tile has; several
# blocks of channels, the last one partial; a pixel of each of two images, and one pixel.
SHAPES = [(2, 64, 4, 8), (2, 24, 7, 9), (1, 3, 2, 3), (1, 70, 5, 7), (2, 5, 1, 1), (1, 2, 1, 1)]


def a_map(shape: tuple[int, ...], dtype: torch.dtype, mean: float = 0.0) -> Tensor:
    x = torch.randn(shape) + mean
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


@dataclass
class Problem:
    """What the launchers take, and float64 autograd's answers."""

    x: Tensor
    residual: Tensor | None
    relu: bool
    weight: Tensor
    bias: Tensor
    grad: Tensor

    @classmethod
    def random(
        cls,
        shape: tuple[int, ...],
        dtype: torch.dtype = torch.float32,
        has_residual: bool = True,
        relu: bool = True,
        mean: float = 0.5,
        weight_dtype: torch.dtype = torch.float32,
    ) -> Problem:
        return cls(
            a_map(shape, dtype, mean),
            a_map(shape, dtype) if has_residual else None,
            relu,
            torch.randn(shape[1]).to(weight_dtype),
            torch.randn(shape[1]).to(weight_dtype),
            # Its mean shall matter to the gradient of x.
            a_map(shape, dtype, 0.5),
        )

    def statistics(self) -> Tensor:
        return launchers.batch_norm_statistics(self.x, None, None, None, 0.0)

    def forward(self, statistics: Tensor) -> Tensor:
        return maps.batch_norm_relu(
            self.x, statistics, self.weight, self.bias, self.residual, self.relu, EPS
        )

    def backward(self, statistics: Tensor) -> tuple[Tensor, ...]:
        """Gradients of x, weight, bias and residual."""
        grad_x, sums, grad_residual = maps.batch_norm_relu_backward(
            self.grad, self.x, statistics, self.weight, self.bias, self.residual, self.relu, EPS
        )
        return grad_x, sums[1], sums[0], grad_residual

    def moments(self) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, variance and count."""
        var, mean = torch.var_mean(self.x.double(), CHANNEL_DIMS, correction=0)
        return mean, var, torch.tensor([self.x[:, 0].numel()], dtype=torch.float64)

    def expected(self) -> tuple[Tensor, list[Tensor]]:
        """The map, and gradients of x, weight, bias and, if there is one, residual."""
        x, weight, bias, residual = (
            None if t is None else t.double().requires_grad_()
            for t in (self.x, self.weight, self.bias, self.residual)
        )
        if self.x.numel() > self.x.shape[1]:
            out = F.batch_norm(x, None, None, weight, bias, training=True, eps=EPS)
        else:
            # PyTorch refuses a single pixel, which is its own mean.
            out = (x - x) * weight[:, None, None] + bias[:, None, None]
        if residual is not None:
            out = out + residual
        if self.relu:
            out = out.relu()
        out.backward(self.grad.double())
        return out.detach(), [t.grad for t in (x, weight, bias, residual) if t is not None]


def assert_close(got: Tensor, expected: Tensor, rtol: float = 0.0, atol: float = 5e-6) -> None:
    """float32 arithmetic on numbers of about one, then one rounding to the dtype of the result."""
    # The interpreter truncates to bfloat16.
    half_ulps = 2 if got.dtype == torch.bfloat16 else 1
    rounding = 0.51 * half_ulps * torch.finfo(got.dtype).eps
    torch.testing.assert_close(got.double(), expected, rtol=max(rtol, rounding, 2e-6), atol=atol)


def assert_all_close(problem: Problem, atol: float = 5e-6) -> None:
    statistics = problem.statistics()
    out, gradients = problem.forward(statistics), problem.backward(statistics)
    expected_out, expected = problem.expected()
    channels = problem.x.shape[1]
    for got, moments in zip(
        statistics.split((channels, channels, 1)), problem.moments(), strict=True
    ):
        assert_close(got, moments)
    assert_close(out, expected_out, atol=atol)
    # Sums over pixels.
    sum_atol = atol * problem.x[:, 0].numel() ** 0.5
    for got, gradient, tolerance in zip(
        gradients, expected, (atol, sum_atol, sum_atol, 0.0), strict=False
    ):
        assert_close(got, gradient, atol=tolerance)
    if problem.residual is None:
        assert gradients[3].shape == (0,)
    for map_ in (out, gradients[0]) if problem.residual is None else (out, *gradients[::3]):
        assert map_.is_contiguous(memory_format=torch.channels_last)
    dtypes = [problem.x.dtype, torch.float32, torch.float32, problem.x.dtype]
    assert [gradient.dtype for gradient in gradients] == dtypes
    assert out.dtype == problem.x.dtype
    assert statistics.dtype == torch.float32


every_dtype = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str
)
with_and_without_residual = pytest.mark.parametrize(
    "has_residual", [True, False], ids=["residual", "alone"]
)


@with_and_without_residual
@every_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_and_backward(
    shape: tuple[int, ...], dtype: torch.dtype, has_residual: bool
) -> None:
    assert_all_close(Problem.random(shape, dtype, has_residual))


@with_and_without_residual
@every_dtype
def test_without_relu(dtype: torch.dtype, has_residual: bool) -> None:
    assert_all_close(Problem.random((2, 24, 7, 9), dtype, has_residual, relu=False))


@pytest.mark.parametrize("weight_dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_weights_of_other_dtypes(weight_dtype: torch.dtype) -> None:
    assert_all_close(Problem.random((2, 20, 3, 5), torch.float16, weight_dtype=weight_dtype))


@pytest.mark.parametrize("width", [16, 17, 23], ids=lambda width: f"pixels-{9 * width}")
@pytest.mark.parametrize("programs", [1, 2, 3])
def test_programs_share_tiles(width: int, programs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of pixels in tiles of 32 or more: as many rounds for all programs, one more for some, and a
    last tile that ends early."""
    monkeypatch.setattr(launchers, "_PROGRAMS", programs)
    monkeypatch.setattr(launchers, "FORWARD_BYTES", 2048)
    for name in ("FORWARD_BYTES", "BACKWARD_BYTES"):
        monkeypatch.setattr(maps, name, 2048)
    problem = Problem.random((1, 12, 9, width), mean=2.0)
    # Pixels that programs read first and last differ: a merge has to weigh means.
    problem.x += torch.linspace(-3, 3, width)
    assert_all_close(problem)


def test_a_large_mean_keeps_the_variance() -> None:
    """Squares have a million in front of the variance of one, and float32 seven digits."""
    problem = Problem.random((2, 20, 10, 20), mean=1000.0)
    statistics = problem.statistics()
    mean, var, _ = statistics.split((20, 20, 1))
    expected_mean, expected_var, _ = problem.moments()
    ulp = 1000 * torch.finfo(torch.float32).eps
    assert_close(mean, expected_mean, atol=ulp)
    assert_close(var, expected_var, atol=0)
    expected, gradients = problem.expected()
    # Rounding the mean moves what is normalised, at weights of up to four.
    assert_close(problem.forward(statistics), expected, atol=4 * ulp)
    got = problem.backward(statistics)
    assert_close(got[0], gradients[0], atol=4 * ulp)


def test_repetitions_give_the_same_bits() -> None:
    for dtype, has_residual in product((torch.float32, torch.bfloat16), (True, False)):
        problem = Problem.random((1, 20, 5, 7), dtype, has_residual)
        statistics = problem.statistics()
        assert torch.equal(statistics, problem.statistics())
        assert torch.equal(problem.forward(statistics), problem.forward(statistics))
        for once, again in zip(
            problem.backward(statistics), problem.backward(statistics), strict=True
        ):
            assert torch.equal(once, again)


@pytest.mark.parametrize("shape", [(0, 5, 3, 4), (2, 0, 3, 4)], ids=str)
def test_nothing(shape: tuple[int, ...]) -> None:
    problem = Problem.random(shape)
    statistics = problem.statistics()
    assert torch.equal(statistics, torch.zeros(2 * shape[1] + 1))
    assert problem.forward(statistics).shape == shape
    grad_x, grad_weight, grad_bias, grad_residual = problem.backward(statistics)
    assert grad_x.shape == grad_residual.shape == shape
    assert (grad_weight == 0).all() and (grad_bias == 0).all()
    merged = launchers.batch_norm_merge_statistics(statistics[None], None, None, None, 0.0)
    assert torch.equal(merged, statistics)


def test_gradient_of_x_with_sums_of_several_processes() -> None:
    """Of a part of the pixels, with statistics and sums of all."""
    problem = Problem.random((3, 20, 5, 7), has_residual=False)
    statistics = problem.statistics()
    expected, *_ = problem.backward(statistics)
    shared = statistics, problem.weight, problem.bias
    sums = torch.zeros(2, 20)
    for part in range(3):
        x, grad = problem.x[part : part + 1], problem.grad[part : part + 1]
        sums += maps.batch_norm_relu_grad_sums(grad, x, *shared, None, True, EPS)[0]
    for part in range(3):
        x, grad = problem.x[part : part + 1], problem.grad[part : part + 1]
        got = maps.batch_norm_relu_grad_input(grad, x, statistics, sums, *shared[1:], True, EPS)
        assert_close(got, expected[part : part + 1].double())


@with_and_without_residual
def test_gradient_passes_where_forward_is_above_zero(has_residual: bool) -> None:
    """Exactly there, however near to zero."""
    problem = Problem.random((2, 16, 8, 8), has_residual=has_residual)
    linear = Problem(
        problem.x, None, False, problem.weight, problem.bias, torch.ones_like(problem.grad)
    )
    normalized = linear.forward(linear.statistics())
    if has_residual:
        # Sums of the smallest numbers, of zero, and of others.
        steps = torch.randint(-1, 2, normalized.shape)
        problem.residual = -normalized + steps * torch.finfo(torch.float32).eps
    else:
        # Few are so near, but their values are those of forward too.
        problem.bias -= normalized[0, :, 3, 3]
    problem.grad = torch.ones_like(problem.grad)
    statistics = problem.statistics()
    out = problem.forward(statistics)
    _, _, grad_bias, grad_residual = problem.backward(statistics)
    passes = out > 0
    assert torch.equal(grad_bias, passes.sum(CHANNEL_DIMS).float())
    if has_residual:
        assert 0 < passes.sum() < passes.numel()
        assert torch.equal(grad_residual > 0, passes)


@pytest.mark.parametrize("place", ["x", "residual"])
def test_nan_is_kept_and_passes_gradient(place: str) -> None:
    problem = Problem.random((1, 4, 3, 5))
    assert problem.residual is not None
    getattr(problem, place)[0, 2, 1, 1] = torch.nan
    statistics = problem.statistics()
    out = problem.forward(statistics)
    grad_x, _, _, grad_residual = problem.backward(statistics)
    expected, gradients = problem.expected()
    torch.testing.assert_close(out.double(), expected, equal_nan=True, rtol=2e-6, atol=5e-6)
    for got, gradient in ((grad_x, gradients[0]), (grad_residual, gradients[3])):
        torch.testing.assert_close(got.double(), gradient, equal_nan=True, rtol=2e-6, atol=5e-6)

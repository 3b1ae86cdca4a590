"""Every size of zero that the ops' checks let pass: results are as eager's where eager knows them,
else what the arithmetic leaves of them."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from op_tester import DTYPES, channels_last, contiguous, skip_float64_on_a_gpu
from torch import Tensor

from pspfast.ops import (
    batch_norm_relu,
    dilated_conv2d,
    pyramid_concat,
    pyramid_conv2d,
    pyramid_pool,
    upsample_argmax,
    upsample_cross_entropy,
    upsample_softmax,
)
from pspfast.ops.batch_norm_relu import batch_norm_statistics, normalize
from pspfast.ops.pyramid_conv2d import add_pyramid

OPS = torch.ops.pspfast
BINS = (1, 2, 3, 6)
S = sum(b * b for b in BINS)

LAYOUTS = pytest.mark.parametrize("layout", [contiguous, channels_last])
ALL_DTYPES = pytest.mark.parametrize("dtype", DTYPES, ids=str)
KERNEL_SIZES = pytest.mark.parametrize("k", [1, 3])


def run(op: Callable[..., Tensor], tensors: list[Tensor]) -> list[Tensor]:
    """The output and the gradients of its sum; zeros of an argument that has none."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    out = op(*leaves)
    grads = torch.autograd.grad(out.sum(), leaves, materialize_grads=True)
    return [out.detach(), *grads]


def assert_same(got: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(got, expected, strict=True):
        tolerance = 1e-10 if one.dtype == torch.float64 else 64 * torch.finfo(one.dtype).eps
        torch.testing.assert_close(one, other.to(one), rtol=tolerance, atol=tolerance)


@LAYOUTS
@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0, 0)])
def test_pyramid_pool(device: torch.device, shape: tuple[int, int], layout: Any) -> None:
    x = layout(torch.randn(*shape, 8, 7, device=device))
    pooled, grad = run(lambda x: pyramid_pool(x, BINS), [x])
    assert pooled.shape == (*shape, S)
    assert grad.shape == x.shape


@LAYOUTS
@ALL_DTYPES
@pytest.mark.parametrize(
    ("batch", "channels", "reduction"),
    [sizes for sizes in itertools.product((0, 2), (0, 3), (0, 5)) if 0 in sizes],
)
def test_pyramid_concat(
    device: torch.device, batch: int, channels: int, reduction: int, dtype: torch.dtype, layout: Any
) -> None:
    skip_float64_on_a_gpu(dtype, device)
    x = layout(torch.randn(batch, channels, 8, 7).to(device, dtype))
    priors = torch.randn(batch, reduction, S).to(device, dtype)

    def eager(x: Tensor, priors: Tensor) -> Tensor:
        if not reduction:
            return x + 0 * priors.sum()
        levels = zip(BINS, priors.split([b * b for b in BINS], dim=2), strict=True)
        maps = [level.unflatten(2, (b, b)) for b, level in levels]
        options = {"mode": "bilinear", "align_corners": True}
        return torch.cat([x, *(F.interpolate(m, x.shape[2:], **options) for m in maps)], dim=1)

    expected = run(eager, [x.double(), priors.double()])
    assert_same(run(lambda x, priors: pyramid_concat(x, priors, BINS), [x, priors]), expected)


@LAYOUTS
@ALL_DTYPES
@KERNEL_SIZES
@pytest.mark.parametrize("levels_first", [False, True])
@pytest.mark.parametrize("batch", [0, 2])
def test_pyramid_conv2d_without_priors(
    device: torch.device, batch: int, levels_first: bool, k: int, dtype: torch.dtype, layout: Any
) -> None:
    """Priors without channels add nothing, whatever the memory held in which they are mixed."""
    skip_float64_on_a_gpu(dtype, device)
    x = layout(torch.randn(batch, 4, 8, 8).to(device, dtype))
    weight = layout(torch.randn(9, 4, k, k).to(device, dtype))
    bias, priors = torch.randn(9).to(device, dtype), torch.randn(batch, 0, S).to(device, dtype)

    def op(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return pyramid_conv2d(x, priors, weight, BINS, bias=bias, levels_first=levels_first)

    expected = run(lambda *args: F.conv2d(*args, padding=k // 2), [x, weight, bias])
    assert_same(run(op, [x, weight, bias]), expected)


@LAYOUTS
@KERNEL_SIZES
def test_empty_batch_of_pyramid_conv2d(device: torch.device, k: int, layout: Any) -> None:
    x, priors = torch.randn(0, 4, 8, 8, device=device), torch.randn(0, 2, S, device=device)
    weight = torch.randn(9, 4 + 2 * len(BINS), k, k, device=device)
    out, *grads = run(
        lambda *args: pyramid_conv2d(*args, BINS), [layout(x), priors, layout(weight)]
    )
    assert out.shape == (0, 9, 8, 8)
    assert_same(grads, [x, priors, torch.zeros_like(weight)])


@KERNEL_SIZES
def test_pyramid_without_channels_is_added_to_a_map(device: torch.device, k: int) -> None:
    base, bias = torch.randn(2, 9, 8, 8, device=device), torch.randn(9, device=device)
    priors, weight = torch.randn(2, 0, S, device=device), torch.randn(9, 0, k, k, device=device)
    out = add_pyramid(base, priors, weight, BINS, True, bias, relu=False)
    torch.testing.assert_close(out, base + bias[:, None, None])


@LAYOUTS
@ALL_DTYPES
@KERNEL_SIZES
@pytest.mark.parametrize(
    ("batch", "x_channels", "reduction", "out_channels"),
    [sizes for sizes in itertools.product((0, 2), (0, 3), (0, 5), (0, 9)) if 0 in sizes],
)
def test_pyramid_mix(
    batch: int,
    x_channels: int,
    reduction: int,
    out_channels: int,
    k: int,
    dtype: torch.dtype,
    layout: Any,
) -> None:
    """The C++ op behind pyramid_conv2d on the CPU, and its backward."""
    priors = torch.randn(batch, reduction, S).to(dtype)
    weight = layout(torch.randn(out_channels, x_channels + len(BINS) * reduction, k, k).to(dtype))
    mixed, weight_x = OPS.pyramid_mix(priors, weight, BINS, False)

    def eager(priors: Tensor, weight: Tensor) -> list[Tensor]:
        of_levels = weight[:, x_channels:].unflatten(1, (len(BINS), reduction)).unbind(1)
        levels = zip(of_levels, priors.split([b * b for b in BINS], dim=2), strict=True)
        products = [torch.einsum("orij,nrs->nsijo", w, level) for w, level in levels]
        return [torch.cat(products, dim=1), weight[:, :x_channels]]

    leaves = [tensor.double().requires_grad_() for tensor in (priors, weight)]
    expected = eager(*leaves)
    assert_same([mixed, weight_x], expected)
    given = [torch.randn_like(mixed), torch.randn_like(weight_x)]
    exact = torch.autograd.grad(expected, leaves, [grad.double() for grad in given])
    assert_same(list(OPS.pyramid_mix_backward(*given, priors, weight, BINS, False)), list(exact))


@LAYOUTS
@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0, 0)])
def test_pyramid_upsample_add(device: torch.device, shape: tuple[int, int], layout: Any) -> None:
    base = layout(torch.randn(*shape, 8, 7))
    mixed = torch.randn(shape[0], S, 3, 3, shape[1])
    out = OPS.pyramid_upsample_add(base, mixed, torch.randn(shape[1]), BINS, True, True)
    assert out.shape == base.shape
    assert OPS.pyramid_upsample_add_backward(base, BINS, True, 3).shape == mixed.shape


@LAYOUTS
@ALL_DTYPES
@pytest.mark.parametrize("channels", [(3, 5), (16, 32)], ids=["library", "Winograd"])
def test_dilated_conv2d(
    device: torch.device, channels: tuple[int, int], dtype: torch.dtype, layout: Any
) -> None:
    skip_float64_on_a_gpu(dtype, device)
    x = layout(torch.randn(0, channels[0], 40, 40).to(device, dtype))
    weight = layout(torch.randn(*channels[::-1], 3, 3).to(device, dtype))
    bias = torch.randn(channels[1]).to(device, dtype)
    out, *grads = run(lambda *args: dilated_conv2d(*args, dilation=2), [x, weight, bias])
    assert out.shape == (0, channels[1], 40, 40)
    assert_same(grads, [x, torch.zeros_like(weight), torch.zeros_like(bias)])


@LAYOUTS
@pytest.mark.parametrize(("channels", "out_channels"), [(0, 5), (3, 0), (0, 0), (0, 32), (32, 0)])
def test_weight_gradient_without_channels(channels: int, out_channels: int, layout: Any) -> None:
    x, grad = (layout(torch.randn(2, c, 20, 20)) for c in (channels, out_channels))
    weight = OPS.dilated_conv2d_grad_weight(grad, x, 2, False)
    assert weight.shape == (out_channels, channels, 3, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("batch", "channels", "out_channels"), [(2, 0, 33), (2, 3, 0), (0, 3, 33)])
def test_winograd_conv2d(batch: int, channels: int, out_channels: int, dtype: torch.dtype) -> None:
    """A map without channels adds nothing to bias and residual."""
    blocks = -(-channels // 16) * -(-out_channels // 16)
    transformed = torch.randn(36, (blocks * 16 + 1) * 16)
    x = torch.randn(batch, channels, 20, 20).to(dtype)
    bias = torch.randn(out_channels).to(dtype)
    residual = torch.randn(batch, out_channels, 20, 20).to(dtype)
    out = OPS.winograd_conv2d(x, transformed, out_channels, bias, 2, residual, False)
    assert_same([out], [residual.double() + bias.double()[:, None, None]])


@LAYOUTS
@ALL_DTYPES
@pytest.mark.parametrize("shape", [(2, 0), (0, 3), (0, 0)])
def test_batch_norm_relu(
    device: torch.device, shape: tuple[int, int], dtype: torch.dtype, layout: Any
) -> None:
    """An empty batch is one process's of several: its own statistics are asked for."""
    skip_float64_on_a_gpu(dtype, device)
    x, residual = (layout(torch.randn(*shape, 8, 7).to(device, dtype)) for _ in range(2))
    weight, bias = torch.randn(2, shape[1], device=device)

    def normalized(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        statistics = batch_norm_statistics(x, (None, None, None), 0.0)
        return normalize(x, statistics, weight, bias, residual, relu=True, eps=1e-5)

    out, *grads = run(normalized, [x, weight, bias, residual])
    assert out.shape == x.shape
    assert_same(grads, [x, torch.zeros_like(weight), torch.zeros_like(bias), residual])
    if shape[0]:
        assert batch_norm_relu(x, None, None, weight, bias, residual).shape == x.shape


@LAYOUTS
@ALL_DTYPES
def test_upsample(device: torch.device, dtype: torch.dtype, layout: Any) -> None:
    skip_float64_on_a_gpu(dtype, device)
    logits = layout(torch.randn(0, 3, 4, 5).to(device, dtype))
    assert upsample_argmax(logits, (9, 7)).shape == (0, 9, 7)
    probabilities, grad = run(lambda x: upsample_softmax(x, (9, 7)), [logits])
    assert probabilities.shape == (0, 3, 9, 7)
    assert grad.shape == logits.shape
    window = torch.zeros_like(probabilities)
    assert upsample_softmax(logits, (9, 7), out=window) is window
    target = torch.zeros(0, 9, 7, dtype=torch.long, device=device)
    _, labels = upsample_cross_entropy(logits, target, return_argmax=True)
    assert labels.shape == (0, 9, 7)
    loss, grad = run(lambda x: upsample_cross_entropy(x, target, label_smoothing=0.1), [logits])
    assert loss == 0
    assert grad.shape == logits.shape

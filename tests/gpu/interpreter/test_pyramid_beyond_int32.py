"""The Triton kernels of pyramid_pool and pyramid_upsample on tensors of more than 2³¹ elements. Of
a launch the last program runs, and tensors take memory where it writes."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from beyond_int32 import CLOSE, Sparse, is_long
from maps import both_formats
from torch import Tensor

from pspfast.kernels.pyramid_pool import pyramid_pool_backward, pyramid_pool_forward
from pspfast.kernels.pyramid_upsample import (
    pyramid_concat_backward,
    pyramid_concat_forward,
    pyramid_upsample_add_backward,
    pyramid_upsample_add_forward,
)

pytestmark = pytest.mark.usefixtures("last_program", "sparse_allocations")
PYRAMID = (1, 2, 3, 6)


@contextmanager
def sums_of_last_channels(sparse: Sparse, dtype: torch.dtype) -> Iterator[None]:
    """Parts of a gradient [parts, N, S, k, k, C], which torch adds: of the last 64 channels alone,
    as the sums of all would take memory."""

    def add_parts(parts: Tensor, _: int) -> Tensor:
        total = sparse(tuple(parts.shape[1:]), dtype=dtype)
        total[..., -64:] = torch.sum(parts[..., -64:], 0)
        return total

    with mock.patch.object(Tensor, "sum", add_parts):
        yield


@both_formats
def test_pyramid_pool(sparse: Sparse, channels_last: bool) -> None:
    """With channels_last the last pixel and bin of the first image lie behind 2³¹ elements, too."""
    channels = 2**26
    x = sparse((2, channels, 6, 6), channels_last)
    exact = torch.randn(1, 16, 6, 6).bfloat16().double().requires_grad_()
    expected = torch.cat([F.adaptive_avg_pool2d(exact, b).flatten(2) for b in PYRAMID], 2)
    x[-1, -16:] = exact[0].detach()
    pooled = pyramid_pool_forward(x, PYRAMID)
    assert is_long(x, pooled)
    torch.testing.assert_close(pooled[-1, -16:].double(), expected[0].detach(), **CLOSE)

    grad = sparse((2, channels, 50), channels_last)
    grad[-1, -16:] = torch.randn(16, 50)
    expected.backward(grad[-1:, -16:].double())
    grad_x = pyramid_pool_backward(grad, PYRAMID, 6, 6, channels_last)
    torch.testing.assert_close(grad_x[-1, -16:].double(), exact.grad[0], **CLOSE)


@both_formats
def test_pyramid_concat_copies(sparse: Sparse, channels_last: bool) -> None:
    """A program has 16 channels."""
    x = sparse((2, 2**28, 2, 3), channels_last)
    x[-1, -16:] = torch.randn(16, 2, 3)
    out = pyramid_concat_forward(x, torch.zeros(2, 0, 5).bfloat16(), (1, 2), False)
    assert is_long(x, out)
    assert torch.equal(out[-1, -16:, -1], x[-1, -16:, -1])


@both_formats
def test_pyramid_concat_upsamples(sparse: Sparse, channels_last: bool) -> None:
    """A program has 64 channels, of the backward 32."""
    channels = 2**29
    priors = sparse((2, channels, 5), channels_last)
    priors[-1, -64:] = torch.randn(64, 5)
    out = pyramid_concat_forward(sparse((2, 3, 2, 3), channels_last), priors, (1, 2), False)
    assert is_long(priors, out)
    level = priors[-1:, -64:, 1:].double().unflatten(2, (2, 2))
    expected = F.interpolate(level, (2, 3), mode="bilinear")
    torch.testing.assert_close(out[-1, -64:, -1].double(), expected[0, :, -1], **CLOSE)

    grad = sparse(tuple(out.shape), channels_last)
    grad[-1, -32:] = torch.randn(32, 2, 3)
    with sums_of_last_channels(sparse, torch.bfloat16):
        got = pyramid_concat_backward(grad, (1, 2), False, channels)
    # Of the last level, the last row of bins.
    small = torch.cat([torch.zeros(1, 32, 2, 3).bfloat16(), grad[-1:, -32:]], dim=1)
    expected = pyramid_concat_backward(small, (1, 2), False, 32)
    torch.testing.assert_close(got[-1, -32:, -2:], expected[0, :, -2:])
    assert expected[0, :, -2:].any(0).all()


@both_formats
def test_pyramid_upsample_add(sparse: Sparse, channels_last: bool) -> None:
    channels = 2**29
    base = sparse((2, channels, 2, 3), channels_last)
    mixed = sparse((2, 1, 3, 3, channels), dtype=torch.float32)
    base[-1, -64:], mixed[-1, ..., -64:] = torch.randn(64, 2, 3), torch.randn(1, 3, 3, 64)
    out = pyramid_upsample_add_forward(base, mixed, None, (1,), True, False)
    assert is_long(base, mixed, out)
    small = (base[-1:, -64:].contiguous(), mixed[-1:, ..., -64:].contiguous())
    expected = pyramid_upsample_add_forward(*small, None, (1,), True, False)
    # A program has 32 channels.
    torch.testing.assert_close(out[-1, -32:, -1], expected[0, -32:, -1])
    assert not torch.equal(expected[0, -32:, -1], small[0][0, -32:, -1])

    with sums_of_last_channels(sparse, torch.float32):
        grad_mixed = pyramid_upsample_add_backward(base, (1,), True, 3)
    expected = pyramid_upsample_add_backward(small[0], (1,), True, 3)
    # A program has 16 channels.
    torch.testing.assert_close(grad_mixed[-1, ..., -16:], expected[0, ..., -16:])
    assert expected[0, ..., -16:].any(-1).all()

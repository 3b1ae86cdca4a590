"""The Triton kernels of dilated_conv2d on tensors of more than 2³¹ elements. Of a launch the last
program runs, and tensors take memory where it writes."""

import pytest
import torch
import torch.nn.functional as F
from beyond_int32 import Sparse, is_long
from torch import Tensor

from pspfast.kernels import dilated_conv2d as conv

pytestmark = pytest.mark.usefixtures("last_program", "sparse_allocations")
# [N, C, H, W] of 64 channels, and as many filters.
MAP = (2, 64, 2**12, 2**12 + 64)
DILATION = 2


def last_rows(x: Tensor, columns: int) -> Tensor:
    """What the last row reads, and the columns that the last `columns` do."""
    return x[-1:, :, -1 - DILATION :, -columns - DILATION :]


def test_dilated_conv2d(sparse: Sparse) -> None:
    x, residual = sparse(MAP, True), sparse(MAP, True)
    weight = torch.randn(64, 64, 3, 3).bfloat16()
    for map_ in (x, residual):
        last_rows(map_, 64).copy_(torch.randn(1, 64, 1 + DILATION, 64 + DILATION))
    padding = {"padding": DILATION, "dilation": DILATION}
    got = conv.dilated_conv2d(x, weight, None, DILATION, residual, False)
    assert is_long(x, got)
    exact = F.conv2d(last_rows(x, 64).double(), weight.double(), **padding)
    expected = (exact + last_rows(residual, 64))[0, :, -1, -64:]
    torch.testing.assert_close(got[-1, :, -1, -64:].double(), expected, rtol=2**-7, atol=1e-3)

    got = conv.dilated_conv2d_grad_input(x, weight, DILATION)
    transposed = weight.double().transpose(0, 1).flip(2, 3)
    expected = F.conv2d(last_rows(x, 64).double(), transposed, **padding)[0, :, -1, -64:]
    torch.testing.assert_close(got[-1, :, -1, -64:].double(), expected, rtol=2**-7, atol=1e-3)


def test_dilated_conv2d_grad_weight(sparse: Sparse, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last program has the last tap, of the last pixels, which other rows of x meet not."""
    # The last of as many splits has more than three rows.
    monkeypatch.setattr(conv, "_ENOUGH_PROGRAMS", 9 * 2048)
    x, grad = sparse(MAP, True), sparse(MAP, True)
    last_rows(x, 64).copy_(torch.randn(1, 64, 1 + DILATION, 64 + DILATION))
    grad[-1, :, -1 - DILATION, -64 - DILATION :] = torch.randn(64, 64 + DILATION)
    got = conv.dilated_conv2d_grad_weight(grad, x, DILATION)[:, :, 2, 2]
    given, of_given = (last_rows(t, 64).double()[0] for t in (x, grad))
    expected = of_given[:, 0, :-DILATION] @ given[:, -1, DILATION:].t()
    torch.testing.assert_close(got.double(), expected, rtol=2**-7, atol=1e-3)


# So many that 64 filters leave int32.
CHANNELS = 2**31 // (63 * 9) + 17


def test_dilated_conv2d_grad_input_of_many_channels(sparse: Sparse) -> None:
    weight = sparse((64, CHANNELS, 3, 3), True)
    weight[:, -64:] = torch.randn(64, 64, 3, 3)
    assert is_long(weight)
    grad = torch.randn(1, 64, 1, 1).bfloat16()
    got = conv.dilated_conv2d_grad_input(grad, weight, 1)
    last = CHANNELS % 64
    expected = grad[:, :, 0, 0].double() @ weight[:, -last:, 1, 1].double()
    torch.testing.assert_close(got[0, -last:, 0, 0].double(), expected[0], rtol=2**-7, atol=1e-3)


def test_dilated_conv2d_grad_weight_of_many_channels(sparse: Sparse) -> None:
    """A map of two by two has all taps."""
    x = sparse((1, CHANNELS, 2, 2), True)
    x[:, -64:] = torch.randn(1, 64, 2, 2)
    grad = torch.randn(1, 64, 2, 2).bfloat16()
    got = conv.dilated_conv2d_grad_weight(grad, x, 1)
    assert is_long(got)
    last = CHANNELS % 64
    expected = torch.outer(grad[0, :, 0, 0].double(), x[0, -last:, 1, 1].double().reshape(-1))
    torch.testing.assert_close(got[:, -last:, 2, 2].double(), expected, rtol=2**-7, atol=1e-3)

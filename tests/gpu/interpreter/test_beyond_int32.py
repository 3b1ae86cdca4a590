"""The Triton kernels on tensors of more than 2³¹ elements. Of a launch the last program runs, and
tensors take memory where it writes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder

from pspfast.kernels import dilated_conv2d as conv
from pspfast.kernels.pyramid_pool import pyramid_pool_backward, pyramid_pool_forward
from pspfast.kernels.pyramid_upsample import (
    pyramid_concat_backward,
    pyramid_concat_forward,
    pyramid_upsample_add_backward,
    pyramid_upsample_add_forward,
)
from pspfast.kernels.upsample_argmax import upsample_argmax, upsample_softmax
from pspfast.kernels.upsample_cross_entropy import (
    upsample_cross_entropy_backward,
    upsample_cross_entropy_forward,
)

PYRAMID = (1, 2, 3, 6)
IGNORED = 255
# Of bfloat16, which the interpreter truncates.
CLOSE = {"rtol": 1.02 * 2**-7, "atol": 1e-5}

Sparse = Callable[..., Tensor]
both_formats = pytest.mark.parametrize(
    "channels_last", [False, True], ids=["contiguous", "channels_last"]
)


@pytest.fixture(autouse=True)
def last_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that runs of a launch."""
    initialise = GridExecutor.__init__
    last = [0, 0, 0]

    def with_one_program(
        executor: GridExecutor, fn: Any, names: Any, grid: Any, *args: Any
    ) -> None:
        def one(arguments: dict[str, Any]) -> tuple[int]:
            sizes = grid(arguments) if callable(grid) else grid
            last[: len(sizes)] = [size - 1 for size in sizes]
            return (1,)

        initialise(executor, fn, names, one, *args)

    monkeypatch.setattr(GridExecutor, "__init__", with_one_program)
    monkeypatch.setattr(
        InterpreterBuilder, "set_grid_idx", lambda b, *_: setattr(b, "grid_idx", tuple(last))
    )
    # It would copy all arguments, to where they are.
    monkeypatch.setattr(GridExecutor, "_restore_args_dev", lambda *_: None)


@pytest.fixture(autouse=True)
def sparse_allocations(sparse: Sparse, monkeypatch: pytest.MonkeyPatch) -> None:
    """What launchers allocate takes memory where it is written."""
    allocate = Tensor.new_empty

    def new_empty(
        like: Tensor, shape: Any, dtype: torch.dtype | None = None, **options: Any
    ) -> Tensor:
        if isinstance(shape, int):  # the interpreter's own
            return allocate(like, shape, **options)
        return sparse(shape, dtype=dtype or like.dtype)

    monkeypatch.setattr(Tensor, "new_empty", new_empty)


def is_long(*tensors: Tensor) -> bool:
    return all(tensor.numel() > 2**31 for tensor in tensors)


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
    torch.testing.assert_close(out[-1, -64:, -1], expected[0, :, -1])
    assert not torch.equal(expected[0, :, -1], small[0][0, :, -1])

    grad_mixed = pyramid_upsample_add_backward(base, (1,), True, 3)
    expected = pyramid_upsample_add_backward(small[0], (1,), True, 3)
    # A program has 32 channels.
    torch.testing.assert_close(grad_mixed[-1, ..., -32:], expected[0, ..., -32:])
    assert expected[0, ..., -32:].any(-1).all()


# Logits [N, K, h, w] and pixels (H, W): an image of logits of more than 2³¹ elements, where a row
# of 2¹⁵ and a class of 2³⁰ lie apart; as many pixels in many images; and in one.
LOGITS = ((2, 3, 2**15, 2**15), (4, 4))
IMAGES = ((2**27 + 1, 2, 2, 1), (4, 4))
PIXELS = ((2, 2, 2**12, 1), (2**16, 2**15 + 64))
# Probabilities of so many classes.
CLASSES = ((1, 1300, 2, 1), (2**12, 2**10))


def logits_of_last_row(
    sparse: Sparse, shape: tuple[int, ...], size: tuple[int, int], channels_last: bool
) -> tuple[Tensor, Tensor]:
    """Logits of which the last row has numbers, and [1, K, 1, W] that the last row of pixels reads.
    Other rows of pixels belong to programs that do not run."""
    logits = sparse(shape, channels_last)
    row = torch.randn(1, shape[1], 1, shape[3]).bfloat16()
    row[:, -1, 0, -1] += 8  # the largest
    logits[-1, :, -1] = row[0, :, 0]
    row = row.double().requires_grad_()
    return logits, F.interpolate(row, (1, size[1]), mode="bilinear", align_corners=True)


@pytest.mark.parametrize(("shape", "size"), [LOGITS, IMAGES, PIXELS, CLASSES], ids=str)
@both_formats
def test_upsample_argmax_and_softmax(
    sparse: Sparse, shape: tuple[int, ...], size: tuple[int, int], channels_last: bool
) -> None:
    logits, full = logits_of_last_row(sparse, shape, size, channels_last)
    expected = full.detach()[0, :, 0, -4:]
    labels = upsample_argmax(logits, *size, True, torch.int64)
    assert labels[-1, -1, -1] == shape[1] - 1
    chosen = expected.gather(0, labels[-1, -1, -4:][None])[0]
    torch.testing.assert_close(chosen, expected.amax(0), rtol=0, atol=2e-6)
    out = upsample_softmax(logits, *size, True, False, 1.0)
    assert is_long(logits) or is_long(out)
    torch.testing.assert_close(
        out[-1, :, -1, -4:].double(), expected.softmax(0), rtol=1e-5, atol=1e-7
    )


# A program for each image would leave more sums than are quickly added.
@pytest.mark.parametrize(("shape", "size"), [LOGITS, PIXELS], ids=str)
@both_formats
def test_upsample_cross_entropy(
    sparse: Sparse, shape: tuple[int, ...], size: tuple[int, int], channels_last: bool
) -> None:
    logits, full = logits_of_last_row(sparse, shape, size, channels_last)
    target = sparse((shape[0], *size), dtype=torch.int64)
    target[-1, -1] = IGNORED
    target[-1, -1, -4:] = torch.arange(4) % shape[1]
    loss, lse, weight_sum, labels = upsample_cross_entropy_forward(
        logits, target, None, IGNORED, True, 0.0, torch.uint8, True
    )
    assert is_long(logits) or is_long(lse)
    assert weight_sum == 4
    expected = F.cross_entropy(full, target[-1:, -1:], ignore_index=IGNORED)
    torch.testing.assert_close(loss.double(), expected.detach(), rtol=2e-6, atol=1e-6)
    expected_lse = full.detach().logsumexp(1)[0, 0, -4:]
    torch.testing.assert_close(lse[-1, -1, -4:].double(), expected_lse, rtol=1e-6, atol=1e-6)
    assert labels[-1, -1, -1] == shape[1] - 1


# Of long rows of pixels a program of the backward takes all.
@pytest.mark.parametrize(("shape", "size"), [LOGITS, IMAGES], ids=str)
@both_formats
def test_upsample_cross_entropy_backward(
    sparse: Sparse, shape: tuple[int, ...], size: tuple[int, int], channels_last: bool
) -> None:
    logits, full = logits_of_last_row(sparse, shape, size, channels_last)
    target = sparse((shape[0], *size), dtype=torch.int64)
    lse = sparse((shape[0], *size), dtype=torch.float32)
    target[-1] = IGNORED
    target[-1, -1] = torch.arange(4) % shape[1]
    lse[-1, -1] = full.detach().logsumexp(1)[0, 0]
    assert is_long(logits) or is_long(lse)
    arguments = (torch.ones(()), logits, target, None, lse, IGNORED, True, 0.0)
    grad = upsample_cross_entropy_backward(*arguments)
    # The last pixel alone reads the last column of many; of one column all do.
    pixels = slice(-1, None) if shape[3] > 1 else slice(None)
    expected = full.detach()[0, :, 0, pixels].softmax(0)
    expected[target[-1, -1, pixels], torch.arange(expected.shape[1])] -= 1
    torch.testing.assert_close(grad[-1, :, -1, -1].double(), expected.sum(1), **CLOSE)


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
    # The last of as many parts has more than three rows.
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

"""The Triton kernels of upsample_argmax, upsample_softmax and upsample_cross_entropy on tensors of
more than 2³¹ elements. Of a launch the last program runs, and tensors take memory where it writes.
"""

import pytest
import torch
import torch.nn.functional as F
from beyond_int32 import CLOSE, Sparse, is_long
from maps import both_formats
from torch import Tensor

from pspfast.kernels.upsample_argmax import upsample_argmax
from pspfast.kernels.upsample_cross_entropy import (
    upsample_cross_entropy_backward,
    upsample_cross_entropy_forward,
)
from pspfast.kernels.upsample_softmax import upsample_softmax

pytestmark = pytest.mark.usefixtures("last_program", "sparse_allocations")
IGNORED = 255

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

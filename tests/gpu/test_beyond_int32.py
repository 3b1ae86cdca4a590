"""The CUDA kernels on tensors of more than 2³¹ elements. Of a launch the last block runs, on the
emulation, and tensors take memory where it writes. pyramid_upsample is tested so in
test_pyramid_upsample_emulation.py."""

import ctypes
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

BFLOAT16 = 2  # of csrc/dtype.h
INT64 = 2  # of labels, in csrc/upsample.h
IGNORED = 255

Sparse = Callable[..., Tensor]

FORMATS = pytest.mark.parametrize(
    "channels_last", [False, True], ids=["contiguous", "channels_last"]
)


@pytest.fixture
def library(emulated: Callable[..., ctypes.CDLL]) -> Callable[[str], ctypes.CDLL]:
    """Of each launch only the last block runs."""
    return lambda stem: emulated(stem, "-DEMULATION_LAST_BLOCK")


def pointers(*tensors: Tensor | None) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(None if t is None else t.data_ptr()) for t in tensors]


# A multiple of 16 bytes, and not.
@pytest.mark.parametrize("channels", [2**26, 2**26 + 3])
@pytest.mark.parametrize("bins", [(1,), (1, 2, 3, 6)], ids=str)
@FORMATS
def test_pyramid_pool(
    library: Callable[[str], ctypes.CDLL],
    sparse: Sparse,
    bins: tuple[int, ...],
    channels: int,
    channels_last: bool,
) -> None:
    """Of [2, C, 6, 6] and [2, C, S] the last channel: in either format the second image begins
    behind 2³¹ elements of x, and with channels_last the last pixel of the first image does."""
    shape, pooled_shape = (2, channels, 6, 6), (2, channels, sum(b * b for b in bins))
    x, pooled, grad, grad_x = (
        sparse(s, channels_last) for s in (shape, pooled_shape, pooled_shape, shape)
    )
    assert x.numel() > 2**31
    exact = torch.randn(1, 1, 6, 6).bfloat16().double().requires_grad_()
    expected = torch.cat([F.adaptive_avg_pool2d(exact, b).flatten(2) for b in bins], 2)
    exact_grad = torch.randn(expected.shape).bfloat16()
    expected.backward(exact_grad.double())
    x[-1, -1], grad[-1, -1] = exact[0, 0].detach(), exact_grad[0, 0]
    for backward, tensors in ((False, (x, pooled)), (True, (grad, grad_x))):
        error = library("pyramid_pool").pyramid_pool(
            *map(ctypes.c_int64, shape),
            ctypes.c_bool(channels_last),
            BFLOAT16,
            (ctypes.c_int64 * len(bins))(*bins),
            len(bins),
            ctypes.c_bool(backward),
            *pointers(*tensors),
        )
        assert error == 0
    close = {"rtol": 2**-8, "atol": 1e-6}
    torch.testing.assert_close(pooled[-1, -1].double(), expected[0, 0].detach(), **close)
    torch.testing.assert_close(grad_x[-1, -1].double(), exact.grad[0, 0], **close)


# Logits [N, K, h, w] and pixels (H, W): an image of logits of more than 2³¹ elements, where a row
# of 2¹⁵ and a class of 2³⁰ lie apart; as many pixels in many images; and in one.
LOGITS = ((2, 3, 2**15, 2**15), (4, 4))
IMAGES = ((2**27 + 1, 2, 2, 1), (4, 4))
PIXELS = ((2, 2, 2**12, 1), (2**16, 2**15 + 64))
# So many classes that a block takes them in two parts.
CLASSES = ((1, 1300, 2, 1), (2**12, 2**10))


class Problem(ctypes.Structure):
    _fields_ = [
        *[(name, ctypes.c_int64) for name in ("n", "k", "h", "w", "height", "width")],
        *[(name, ctypes.c_int64) for name in ("align_corners", "channels_last", "dtype")],
        ("ignore_index", ctypes.c_int64),
        ("smoothing", ctypes.c_double),
    ]


class Output(ctypes.Structure):
    _fields_ = [
        *[(name, ctypes.c_int64) for name in ("image", "class_", "row", "col", "flip", "add")],
        ("weight", ctypes.c_double),
    ]


class LastRow:
    """Logits of which the last row has numbers; with corners aligned, it is what the last row of
    pixels reads. Other rows of pixels belong to blocks that do not run."""

    def __init__(
        self, sparse: Sparse, shape: tuple[int, ...], size: tuple[int, int], channels_last: bool
    ) -> None:
        self.width = size[1]
        self.logits = sparse(shape, channels_last)
        self.problem = Problem(*shape, *size, 1, channels_last, BFLOAT16, IGNORED, 0.0)
        self.row = torch.randn(1, shape[1], 1, shape[3]).bfloat16()
        self.row[:, -1, 0, -1] += 8  # the largest
        self.logits[-1, :, -1] = self.row[0, :, 0]

    def upsampled(self) -> Tensor:
        """[1, K, 1, W], and its gradient reaches `exact`."""
        self.exact = self.row.double().requires_grad_()
        return F.interpolate(self.exact, (1, self.width), mode="bilinear", align_corners=True)


@pytest.mark.parametrize(
    ("shape", "size"),
    [LOGITS, IMAGES, PIXELS, CLASSES],
    ids=["logits", "images", "pixels", "classes"],
)
@FORMATS
def test_upsample_argmax_and_softmax(
    library: Callable[[str], ctypes.CDLL],
    sparse: Sparse,
    shape: tuple[int, ...],
    size: tuple[int, int],
    channels_last: bool,
) -> None:
    last = LastRow(sparse, shape, size, channels_last)
    labels = sparse((shape[0], *size), dtype=torch.int64)
    out = sparse((*shape[:2], *size), dtype=torch.float32)
    assert max(last.logits.numel(), out.numel()) > 2**31
    argmax, softmax = library("upsample_argmax"), library("upsample_softmax")
    problem, given = ctypes.byref(last.problem), pointers(last.logits)
    assert argmax.upsample_argmax(problem, *given, INT64, *pointers(labels)) == 0
    output = ctypes.byref(Output(*out.stride(), False, False, 1.0))
    assert softmax.upsample_softmax(problem, output, *given, *pointers(out)) == 0
    # A block has some columns of the row.
    expected = last.upsampled().detach()[0, :, 0, -4:]
    chosen = expected.gather(0, labels[-1, -1, -4:][None])[0]
    torch.testing.assert_close(chosen, expected.amax(0), rtol=0, atol=2e-6)
    assert chosen[-1] == expected[-1, -1]
    torch.testing.assert_close(
        out[-1, :, -1, -4:].double(), expected.softmax(0), rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize(
    ("shape", "size"), [LOGITS, IMAGES, PIXELS], ids=["logits", "images", "pixels"]
)
@FORMATS
def test_upsample_cross_entropy(
    library: Callable[[str], ctypes.CDLL],
    sparse: Sparse,
    shape: tuple[int, ...],
    size: tuple[int, int],
    channels_last: bool,
) -> None:
    ops = library("upsample_cross_entropy")
    ops.upsample_cross_entropy_partials.restype = ops.upsample_cross_entropy_workspace.restype = (
        ctypes.c_int64
    )
    last = LastRow(sparse, shape, size, channels_last)
    problem, given = ctypes.byref(last.problem), pointers(last.logits)
    target = sparse((shape[0], *size), dtype=torch.int64)
    lse = sparse((shape[0], *size), dtype=torch.float32)
    target[-1, -1] = torch.arange(size[1]) % shape[1]
    sums = sparse((ops.upsample_cross_entropy_partials(problem), 3), dtype=torch.float64)
    assert max(last.logits.numel(), lse.numel()) > 2**31
    error = ops.upsample_cross_entropy(
        problem, *given, *pointers(target, None, lse), INT64, *pointers(None, sums)
    )
    assert error == 0
    full = last.upsampled()
    losses = F.cross_entropy(full, target[-1:, -1:], reduction="none")[0, 0]
    torch.testing.assert_close(
        lse[-1, -1, -4:].double(), full.detach().logsumexp(1)[0, 0, -4:], rtol=1e-6, atol=1e-6
    )
    # A block's pixels lie side by side.
    counted = int(sums[-1, 1].item())
    assert counted > 0
    torch.testing.assert_close(sums[-1, 0], losses[-counted:].sum().detach(), rtol=1e-6, atol=1e-6)

    # All pixels of the row, of any block of the forward.
    lse[-1, -1] = full.detach().logsumexp(1)[0, 0]
    losses.sum().backward()
    grad, scale = sparse(shape, channels_last), torch.ones(1)
    workspace = sparse((ops.upsample_cross_entropy_workspace(problem) // 4,), dtype=torch.float32)
    error = ops.upsample_cross_entropy_backward(
        problem, *given, *pointers(target, None, lse, scale, grad, workspace)
    )
    assert error == 0
    # The last element in memory; many pixels add up to it.
    torch.testing.assert_close(
        grad[-1, -1, -1, -1].double(), last.exact.grad[0, -1, 0, -1], rtol=2**-8, atol=1e-3
    )

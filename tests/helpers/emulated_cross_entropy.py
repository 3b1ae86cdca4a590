"""upsample_cross_entropy on the emulation: cases, how the library is called, the reference."""

import ctypes
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from emulated_upsample import (
    LABEL_TYPES,
    Case,
    Problem,
    as_stored,
    pointer,
    poisoned,
    problem_of,
    unpoisoned,
    upsampled,
)
from torch import Tensor

IGNORED = 255


@dataclass(frozen=True)
class LossCase(Case):
    smoothing: float = 0.0
    weighted: bool = False


CASES = [
    LossCase((2, 5, 3, 4), (17, 25)),
    LossCase((2, 5, 3, 4), (17, 25), align_corners=False, smoothing=0.1, weighted=True),
    LossCase((1, 21, 5, 8), (33, 57), weighted=True),
    LossCase((1, 4, 3, 2), (5, 4), align_corners=False, smoothing=0.1),
    # More classes than a block of the backward takes, and than the forward takes at a time.
    LossCase((1, 70, 2, 3), (9, 7), align_corners=False, smoothing=0.2),
    LossCase((1, 600, 2, 5), (9, 33), smoothing=0.1, weighted=True),
    # Down-sampling along one axis or both.
    LossCase((1, 40, 2, 300), (9, 130), weighted=True),
    # As many columns of logits for a tile of pixels as there may be.
    LossCase((1, 3, 2, 70), (3, 130)),
    LossCase((1, 5, 20, 70), (7, 19)),
    LossCase((1, 3, 40, 70), (3, 4), align_corners=False, smoothing=1.0),
    LossCase((1, 2, 200, 3), (1, 5), align_corners=False),
    # More columns of logits than a block of the backward takes.
    LossCase((1, 3, 2, 33), (9, 257), align_corners=False),
    # More rows and columns between logits than a block takes at a time.
    LossCase((1, 2, 2, 2), (37, 300)),
    LossCase((1, 2, 2, 1), (40, 150), align_corners=False, smoothing=0.3),
    LossCase((2, 3, 3, 3), (3, 3)),
    LossCase((2, 7, 1, 1), (19, 18)),
    LossCase((1, 300, 2, 1), (1, 1), align_corners=False, smoothing=0.3, weighted=True),
    LossCase((1, 1, 3, 3), (17, 17), align_corners=False),
    LossCase((5, 2, 1, 2), (2, 3)),
]


class LossProblem(Problem):
    _fields_ = (("ignore_index", ctypes.c_int64), ("smoothing", ctypes.c_double))


@dataclass
class Loss:
    loss: float
    weight: float
    invalid: float
    lse: Tensor
    labels: Tensor | None


class UpsampleLoss:
    """Both directions on the emulation."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        for function in (
            library.upsample_cross_entropy_partials,
            library.upsample_cross_entropy_workspace,
        ):
            function.restype = ctypes.c_int64

    def problem(self, case: LossCase, dtype: torch.dtype, channels_last: bool) -> LossProblem:
        sizes = problem_of(case, dtype, channels_last)
        numbers = [getattr(sizes, name) for name, *_ in Problem._fields_]
        return LossProblem(*numbers, IGNORED, case.smoothing)

    def forward(
        self,
        case: LossCase,
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None,
        channels_last: bool,
        label_type: torch.dtype | None = None,
    ) -> Loss:
        problem = self.problem(case, logits.dtype, channels_last)
        given = as_stored(logits, channels_last)
        pixels = target.numel()
        lse = poisoned(pixels, torch.float32)
        partials = self.library.upsample_cross_entropy_partials(ctypes.byref(problem))
        sums = poisoned(3 * partials, torch.float64)
        labels = poisoned(pixels, label_type) if label_type else None
        error = self.library.upsample_cross_entropy(
            ctypes.byref(problem),
            *map(pointer, (given, target, weight, lse)),
            LABEL_TYPES.index(label_type) if label_type else 0,
            *map(pointer, (labels, sums)),
        )
        assert error == 0
        loss, weight_sum, invalid = unpoisoned(sums, (partials, 3)).sum(0).tolist()
        self.check_mean(problem, sums, partials, loss, weight_sum, invalid)
        lse = unpoisoned(lse, target.shape)
        if labels is not None:
            labels = unpoisoned(labels, target.shape)
        return Loss(loss, weight_sum, invalid, lse, labels)

    def check_mean(
        self,
        problem: LossProblem,
        sums: Tensor,
        partials: int,
        loss: float,
        weight_sum: float,
        invalid: float,
    ) -> None:
        """The kernel that divides, on the sums of the one before."""
        mean, weight = poisoned(1, torch.float32), poisoned(1, torch.float32)
        valid = torch.tensor([2, 2], dtype=torch.uint8)
        error = self.library.upsample_cross_entropy_mean(
            ctypes.byref(problem),
            ctypes.c_int64(partials),
            *map(pointer, (sums, mean, weight, valid)),
        )
        assert error == 0
        expected = torch.tensor([loss / weight_sum if weight_sum else 0.0, weight_sum])
        got = torch.cat([unpoisoned(mean, (1,)), unpoisoned(weight, (1,))])
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=0, equal_nan=True)
        assert valid.tolist() == [invalid == 0, 2]

    def backward(
        self,
        case: LossCase,
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None,
        lse: Tensor,
        scale: float,
        channels_last: bool,
    ) -> Tensor:
        problem = self.problem(case, logits.dtype, channels_last)
        given, factor = as_stored(logits, channels_last), torch.tensor(scale)
        grad = poisoned(logits.numel(), logits.dtype)
        size = self.library.upsample_cross_entropy_workspace(ctypes.byref(problem))
        assert size % 4 == 0
        workspace = poisoned(size // 4, torch.float32)
        error = self.library.upsample_cross_entropy_backward(
            ctypes.byref(problem),
            *map(pointer, (given, target, weight, lse, factor)),
            *map(pointer, (grad, workspace)),
        )
        assert error == 0
        unpoisoned(workspace, (-1,))
        n, k, h, w = case.shape
        if not channels_last:
            return unpoisoned(grad, case.shape)
        return unpoisoned(grad, (n, h, w, k)).movedim(-1, 1)


def make_target(case: LossCase) -> Tensor:
    """Classes in some order; every fifth pixel is ignored."""
    shape = (case.shape[0], *case.size)
    pixel = torch.arange(shape[0] * shape[1] * shape[2]).reshape(shape)
    # No label is the ignored one.
    classes = min(case.shape[1], IGNORED)
    return torch.where(pixel % 5 == 4, IGNORED, pixel * 7 // 3 % classes)


def make_weight(case: LossCase) -> Tensor | None:
    return torch.linspace(0.5, 2, case.shape[1]) if case.weighted else None


def reference(case: LossCase, logits: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    return F.cross_entropy(
        upsampled(case, logits),
        target,
        None if weight is None else weight.to(logits.dtype),
        ignore_index=IGNORED,
        reduction="sum",
        label_smoothing=case.smoothing,
    )

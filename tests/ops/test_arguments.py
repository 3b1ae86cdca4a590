"""Every documented argument of every op, wrong in each way that its docstring excludes: an error
that names op, argument, expected and got, before anything is written."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from op_tester import moved, with_reference
from torch import Tensor

from pspfast import ops

BINS = (1, 2, 3, 6)
S = sum(b * b for b in BINS)
INTEGERS = {"dtype": torch.int64}


def good() -> dict[str, dict[str, Any]]:
    """Arguments that each op takes."""
    return {
        "pyramid_pool": {"x": torch.randn(2, 3, 8, 8), "bins": BINS},
        "pyramid_concat": {
            "x": torch.randn(2, 3, 8, 8),
            "priors": torch.randn(2, 5, S),
            "bins": BINS,
        },
        "pyramid_conv2d": {
            "x": torch.randn(2, 3, 8, 8),
            "priors": torch.randn(2, 5, S),
            "weight": torch.randn(7, 23, 3, 3),
            "bins": BINS,
            "bias": torch.randn(7),
        },
        "dilated_conv2d": {
            "x": torch.randn(2, 3, 8, 8),
            "weight": torch.randn(7, 3, 3, 3),
            "bias": torch.randn(7),
            "residual": torch.randn(2, 7, 8, 8),
        },
        "batch_norm_relu": {
            "x": torch.randn(2, 3, 8, 8),
            "running_mean": torch.randn(3),
            "running_var": torch.rand(3),
            "weight": torch.randn(3),
            "bias": torch.randn(3),
            "residual": torch.randn(2, 3, 8, 8),
        },
        "upsample_cross_entropy": {
            "logits": torch.randn(2, 5, 4, 4),
            "target": torch.randint(5, (2, 9, 9)),
            "weight": torch.rand(5),
        },
        "upsample_argmax": {"logits": torch.randn(2, 5, 4, 4), "size": (9, 9)},
        "upsample_softmax": {
            "logits": torch.randn(2, 5, 4, 4),
            "size": (9, 9),
            "out": torch.randn(2, 5, 9, 9),
        },
    }


class Wrong(NamedTuple):
    op: str
    argument: str
    change: Callable[[Any], Any]
    error: type[Exception]
    says: str  # what is expected, and got

    def __str__(self) -> str:
        return f"{self.op}-{self.argument}-{self.says}"


def maps(op: str, name: str = "x") -> list[Wrong]:
    return [
        Wrong(op, name, lambda x: x[0], ValueError, "[N, C, H, W], got shape [3, 8, 8]"),
        Wrong(op, name, lambda x: x[..., :0], ValueError, "H and W of 1 to 8388608, got 8 and 0"),
        Wrong(op, name, lambda x: x.long(), TypeError, "float32, float16 or bfloat16, got Long"),
        Wrong(op, name, lambda x: x + 0j, TypeError, "float32, float16 or bfloat16, got ComplexF"),
    ]


def all_bins(op: str) -> list[Wrong]:
    return [
        Wrong(op, "bins", lambda _: (), ValueError, "1 to 8 levels, got 0"),
        Wrong(op, "bins", lambda _: (1,) * 9, ValueError, "1 to 8 levels, got 9"),
        Wrong(op, "bins", lambda _: (1, 0), ValueError, "each of 1 to 64, got 0"),
        Wrong(op, "bins", lambda _: (1, -2), ValueError, "each of 1 to 64, got -2"),
        Wrong(op, "bins", lambda _: (40, 41), ValueError, "a sum of at most 64, got 81"),
    ]


def like_x(op: str, name: str) -> Wrong:
    return Wrong(op, name, lambda t: t.double(), TypeError, "Float as x, got Double")


def per_channel(op: str, name: str, letter: str, channels: int) -> list[Wrong]:
    says = f"[{letter}] with {letter} = {channels}, got shape"
    return [
        Wrong(op, name, lambda t: t[1:], ValueError, f"{says} [{channels - 1}]"),
        Wrong(op, name, lambda t: t[None], ValueError, f"{says} [1, {channels}]"),
    ]


def floating(op: str, name: str) -> Wrong:
    return Wrong(op, name, lambda t: t.long(), TypeError, "floating point, got Long")


def sizes(op: str) -> list[Wrong]:
    return [
        Wrong(op, "size", lambda _: (9, 0), ValueError, "H and W of 1 to 8388608, got 9 and 0"),
        Wrong(op, "size", lambda _: (-1, 9), ValueError, "H and W of 1 to 8388608, got -1 and 9"),
        Wrong(op, "size", lambda _: (9,), ValueError, "(H, W), got (9,)"),
        Wrong(op, "size", lambda _: (9, 9, 9), ValueError, "(H, W), got (9, 9, 9)"),
    ]


def logits(op: str) -> list[Wrong]:
    return [
        Wrong(op, "logits", lambda x: x[0], ValueError, "[N, C, H, W], got shape [5, 4, 4]"),
        Wrong(op, "logits", lambda x: x.long(), TypeError, "float32, float16 or bfloat16, got Lon"),
        Wrong(op, "logits", lambda x: x[:, :0], ValueError, "K of at least 1, got 0"),
    ]


CONCAT, CONV, DILATED = "pyramid_concat", "pyramid_conv2d", "dilated_conv2d"
NORM, LOSS, ARGMAX = "batch_norm_relu", "upsample_cross_entropy", "upsample_argmax"
SOFTMAX = "upsample_softmax"

PRIORS = f"[N, R, S] with N = 2 and S = {S}, got shape"
CONV_WEIGHT = "[O, C + L R, k, k] with C + L R = 23 and k = 1 or 3, got shape"

WRONG = [
    *maps("pyramid_pool"),
    *all_bins("pyramid_pool"),
    *maps(CONCAT),
    *all_bins(CONCAT),
    *maps(CONV),
    *all_bins(CONV),
    *[
        wrong
        for op in (CONCAT, CONV)
        for wrong in (
            Wrong(op, "priors", lambda p: p[:1], ValueError, f"{PRIORS} [1, 5, {S}]"),
            Wrong(op, "priors", lambda p: p[..., 1:], ValueError, f"{PRIORS} [2, 5, {S - 1}]"),
            Wrong(op, "priors", lambda p: p[0], ValueError, f"{PRIORS} [5, {S}]"),
            like_x(op, "priors"),
        )
    ],
    Wrong(CONV, "x", lambda x: x[:, :0], ValueError, "C of at least 1, got 0"),
    Wrong(CONV, "weight", lambda w: w[:0], ValueError, "O of at least 1, got 0"),
    Wrong(CONV, "weight", lambda w: w[:, 1:], ValueError, f"{CONV_WEIGHT} [7, 22, 3, 3]"),
    Wrong(CONV, "weight", lambda w: w[..., 1:], ValueError, f"{CONV_WEIGHT} [7, 23, 3, 2]"),
    Wrong(CONV, "weight", lambda w: w[..., 1:, 1:], ValueError, f"{CONV_WEIGHT} [7, 23, 2, 2]"),
    Wrong(CONV, "weight", lambda w: w[0], ValueError, f"{CONV_WEIGHT} [23, 3, 3]"),
    like_x(CONV, "weight"),
    *per_channel(CONV, "bias", "O", 7),
    like_x(CONV, "bias"),
    *maps(DILATED),
    Wrong(DILATED, "x", lambda x: x[:, 1:], ValueError, "[N, C, H, W] with C = 3, got shape [2, 2"),
    Wrong(DILATED, "weight", lambda w: w[0], ValueError, "[O, C, 3, 3], got shape [3, 3, 3]"),
    Wrong(DILATED, "weight", lambda w: w[..., 1:], ValueError, "[O, C, 3, 3], got shape [7, 3, 3,"),
    Wrong(DILATED, "weight", lambda w: w[:0], ValueError, "[O, C, 3, 3], got shape [0, 3, 3, 3]"),
    like_x(DILATED, "weight"),
    *per_channel(DILATED, "bias", "O", 7),
    like_x(DILATED, "bias"),
    Wrong(DILATED, "dilation", lambda _: 0, ValueError, "1 to 8388608, got 0"),
    Wrong(DILATED, "dilation", lambda _: 2**62, ValueError, f"1 to 8388608, got {2**62}"),
    Wrong(DILATED, "residual", lambda r: r[:1], ValueError, "shape [2, 7, 8, 8], got [1, 7, 8, 8]"),
    like_x(DILATED, "residual"),
    *maps(NORM),
    Wrong(NORM, "x", lambda x: x[:0], ValueError, "at least 2 values per channel, got shape [0, 3"),
    Wrong(NORM, "x", lambda x: x[:1, :, :1, :1], ValueError, "at least 2 values per channel, got"),
    *[
        wrong
        for name in ("running_mean", "running_var", "weight", "bias")
        for wrong in (*per_channel(NORM, name, "C", 3), floating(NORM, name))
    ],
    Wrong(NORM, "residual", lambda r: r[:, 1:], ValueError, "shape [2, 3, 8, 8], got [2, 2, 8, 8]"),
    like_x(NORM, "residual"),
    *logits(LOSS),
    Wrong(
        LOSS, "target", lambda t: t[0], ValueError, "[N, H, W] with N of logits [2, 5, 4, 4], got"
    ),
    Wrong(
        LOSS, "target", lambda t: t[:1], ValueError, "[N, H, W] with N of logits [2, 5, 4, 4], got"
    ),
    Wrong(LOSS, "target", lambda t: t[:, :0], ValueError, "H and W of at least 1, got 0 and 9"),
    Wrong(LOSS, "target", lambda t: t.float(), TypeError, "integers, got Float"),
    Wrong(LOSS, "target", lambda t: t > 1, TypeError, "integers, got Bool"),
    Wrong(LOSS, "target", lambda t: t * 0 + 7, ValueError, "labels 0 to 4 or 255 (ignored), got"),
    *per_channel(LOSS, "weight", "K", 5),
    floating(LOSS, "weight"),
    Wrong(LOSS, "label_smoothing", lambda _: 1.5, ValueError, "0 to 1, got 1.5"),
    Wrong(LOSS, "label_smoothing", lambda _: float("nan"), ValueError, "0 to 1, got nan"),
    *logits(ARGMAX),
    *sizes(ARGMAX),
    Wrong(ARGMAX, "dtype", lambda _: torch.int16, TypeError, "uint8, int32 or int64, got Short"),
    *logits(SOFTMAX),
    *sizes(SOFTMAX),
    Wrong(SOFTMAX, "out", lambda o: o[0], ValueError, "shape [2, 5, 9, 9], got [5, 9, 9]"),
    Wrong(SOFTMAX, "out", lambda o: o.half(), TypeError, "Float, got Half"),
    Wrong(SOFTMAX, "out", lambda o: o.long(), TypeError, "Float, got Long"),
    Wrong(
        SOFTMAX, "out", lambda o: o[..., :1].expand_as(o), ValueError, "memory of its own for each"
    ),
]

# As torch prints dtypes in Python and in C++.
DTYPE_NAMES = {
    "Double": "torch.float64",
    "Float": "torch.float32",
    "Half": "torch.float16",
    "Short": "torch.int16",
    "Long": "torch.int64",
    "Lon": "torch.int64",
    "Bool": "torch.bool",
    "ComplexF": "torch.complex64",
}


def in_python(says: str) -> str:
    return re.sub(r"\b([A-Z][A-Za-z]+)\b", lambda m: DTYPE_NAMES.get(m[1], m[1]), says)


@with_reference
@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_wrong_argument_is_named_before_anything_is_written(
    wrong: Wrong, device: torch.device
) -> None:
    arguments = moved(good()[wrong.op], device)
    kept = {name: t.clone() for name, t in arguments.items() if isinstance(t, Tensor)}
    changed = arguments | {wrong.argument: wrong.change(arguments.get(wrong.argument))}
    with pytest.raises(wrong.error) as caught:
        getattr(ops, wrong.op)(**changed)
    message = str(caught.value).replace(" or float64", "")
    start = f"{wrong.op}: {wrong.argument}: expected "
    assert message.startswith((start + wrong.says, start + in_python(wrong.says)))
    assert ", got " in message
    for name, before in kept.items():
        assert torch.equal(arguments[name], before), f"{name} was written to"


@with_reference
@pytest.mark.parametrize(
    ("op", "argument"),
    [
        (op, name)
        for op, arguments in good().items()
        for name in list(arguments)[1:]
        if isinstance(arguments[name], Tensor)
    ],
)
def test_argument_on_another_device(op: str, argument: str, device: torch.device) -> None:
    arguments = moved(good()[op], device)
    kept = {name: t.clone() for name, t in arguments.items() if isinstance(t, Tensor)}
    arguments[argument] = arguments[argument].to("meta")
    with pytest.raises(ValueError, match=rf"^{op}: {argument}: expected device .*, got meta"):
        getattr(ops, op)(**arguments)
    for name in kept.keys() - {argument}:
        assert torch.equal(arguments[name], kept[name]), f"{name} was written to"


@with_reference
def test_good_arguments_are_taken(device: torch.device) -> None:
    for op, arguments in good().items():
        getattr(ops, op)(**moved(arguments, device))

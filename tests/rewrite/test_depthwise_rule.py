"""Depthwise convolutions whose taps lie far apart, in inference on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from randomised import randomised
from rewriting import check, rewritten, rules, same
from torch import Tensor, fx, nn
from torch_release import TORCH

import pspfast
from pspfast import backends

OP = torch.ops.pspfast.depthwise_conv2d.default


class Depthwise(nn.Module):
    """conv, BatchNorm, ReLU, the latter two if asked for."""

    def __init__(self, k: Any = 3, norm: bool = True, relu: bool = True, **options: Any) -> None:
        super().__init__()
        default = {"out_channels": 24, "padding": 7, "dilation": 7, "groups": 24}
        self.conv = nn.Conv2d(24, kernel_size=k, **default | options)
        self.norm = nn.BatchNorm2d(self.conv.out_channels) if norm else None
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv(x)
        out = out if self.norm is None else self.norm(out)
        return out.relu() if self.relu else out


def channels_last(size: tuple[int, int] = (17, 23)) -> Tensor:
    return torch.randn(2, 24, *size).contiguous(memory_format=torch.channels_last)


@pytest.fixture(autouse=True)
def vectors(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Says what torch calls the processor's vectors; AVX512 to begin with."""

    def say(name: str) -> None:
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: name)

    say("AVX512")
    return say


def calls(model: nn.Module, x: Tensor, **options: Any) -> list[fx.Node]:
    """Of the operator, in the rewritten graph of inference, after comparing results."""
    graphs: list[fx.Graph] = []

    def keep(module: fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        graphs.append(module.graph)
        return module.forward

    model = randomised(model).eval()
    compiled, _ = rewritten(model, keep, **options)
    with torch.no_grad():
        same(compiled(x), model(x), 1e-5 if x.dtype == torch.float32 else 2e-2)
    return [n for graph in graphs for n in graph.nodes if n.target is OP]


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"k": 5, "padding": 14}], ids=str)
def test_applies(options: dict[str, Any], norm: bool, relu: bool) -> None:
    (node,) = calls(Depthwise(norm=norm, relu=relu, **options), channels_last())
    assert node.args[3:] == (7, relu)


def test_replaces_what_follows() -> None:
    compiled, report = rewritten(randomised(Depthwise()).eval())
    with torch.no_grad():
        compiled(channels_last())
    assert report.applications[0].replaced == ("conv2d", "batch_norm", "relu")


def test_a_residual_stays_apart() -> None:
    class Residual(Depthwise):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.norm(self.conv(x)) + x)

    (node,) = calls(Residual(), channels_last())
    assert not node.args[4]


def test_sizes_may_be_symbols() -> None:
    nodes = calls(Depthwise(), channels_last(), dynamic=True)
    # torch 2.11 does not know the memory format of results of symbolic sizes.
    if TORCH > (2, 11):
        (node,) = nodes
        assert isinstance(node.meta["val"].shape[2], torch.SymInt)


@pytest.mark.parametrize(
    ("isa", "dilation", "expected"),
    [("AVX512", 6, 0), ("AVX512", 7, 1), ("AVX2", 4, 0), ("AVX2", 5, 1), ("DEFAULT", 12, 0)],
)
def test_where_onednn_has_no_depthwise_kernel(
    isa: str, dilation: int, expected: int, vectors: Callable[[str], None]
) -> None:
    vectors(isa)
    model = Depthwise(padding=dilation, dilation=dilation)
    assert len(calls(model, channels_last())) == expected


@pytest.mark.parametrize(
    "options",
    [
        {"groups": 12},
        {"out_channels": 48},
        {"stride": 2},
        {"padding": 6},
        {"padding": (7, 8)},
        {"dilation": (7, 8)},
        {"k": 2},
        {"k": (3, 1)},
    ],
    ids=str,
)
def test_other_convolutions_stay(options: dict[str, Any]) -> None:
    assert not calls(Depthwise(**options), channels_last())


def test_contiguous_maps_stay() -> None:
    assert not calls(Depthwise(), channels_last().contiguous())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_other_dtypes_stay(dtype: torch.dtype) -> None:
    assert not calls(Depthwise().to(dtype), channels_last().to(dtype))


def test_stays_without_the_op_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "default", lambda *args, **kwargs: "reference")
    assert not calls(Depthwise(), channels_last())


def test_stays_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert not calls(Depthwise(norm=False), channels_last())


def test_gradients_are_eager_s() -> None:
    x = channels_last()
    report = check(Depthwise().eval(), x, tolerance=1e-5)
    assert rules(report) == ["folded_conv2d"]
    report = check(Depthwise(norm=False, relu=False), x, tolerance=1e-5)
    assert rules(report) == ["folded_conv2d"]
    compiled, report = rewritten(Depthwise(norm=False, relu=False))
    compiled(x.requires_grad_())
    assert not rules(report)


def test_a_changed_weight_is_seen_at_once() -> None:
    model, x = randomised(Depthwise()).eval().requires_grad_(False), channels_last()
    compiled, _ = rewritten(model)
    for _ in range(2):
        with torch.no_grad():
            same(compiled(x), model(x), 1e-5)
            model.conv.weight.mul_(2)
            model.norm.bias.add_(1)


def test_compiled_by_inductor() -> None:
    model, x = randomised(Depthwise()).eval(), channels_last()
    compiled, report = rewritten(model, "inductor")
    with torch.no_grad():
        same(compiled(x), model(x), 1e-5)
    assert rules(report) == ["folded_conv2d"]


def test_explained() -> None:
    model, x = Depthwise().eval(), channels_last()
    with torch.no_grad():
        (applied,) = pspfast.explain(model, x).applied
    # Weight and bias are of 24 channels; the norm has four such tensors and writes a map more.
    numbers = 2 * x.numel() + 24 * 9 + 24
    assert applied.after.multiplications == applied.before.multiplications == 9 * x.numel()
    assert applied.after.bytes == 4 * numbers
    assert applied.before.bytes == 4 * (numbers + 4 * x.numel() + 4 * 24)

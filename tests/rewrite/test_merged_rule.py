"""Two 1×1 convolutions or linear layers in a row."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from rewriting import check, reasons, relative, rewritten, rules
from torch import Tensor, nn

RULE = "merged_pointwise"


def map_(*shape: int) -> Tensor:
    return torch.randn(*(shape or (2, 8, 5, 7)), dtype=torch.float64)


def convolutions(inner: int = 24, bias: bool = True, k: int = 1, **second: int) -> nn.Sequential:
    last = nn.Conv2d(inner, 12, k, padding=k // 2, bias=bias, **second)
    return nn.Sequential(nn.Conv2d(8, inner, 1, bias=bias), last)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("bias", [False, True])
def test_convolutions(bias: bool, layout: torch.memory_format) -> None:
    report = check(convolutions(bias=bias), map_().contiguous(memory_format=layout))
    assert rules(report) == [RULE]
    assert report.applications[0].replaced == ("conv2d", "conv2d")


@pytest.mark.parametrize("shape", [(8,), (3, 8), (2, 9, 8), (2, 5, 7, 8), (0, 9, 8)])
def test_linear_layers(shape: tuple[int, ...]) -> None:
    model = nn.Sequential(nn.Linear(8, 24), nn.Linear(24, 12, bias=False))
    assert rules(check(model, map_(*shape))) == [RULE]


def test_linear_layers_of_transposed_tokens() -> None:
    class Transposed(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.flatten(2).transpose(1, 2)).view(x.shape[0], -1)

    assert rules(check(Transposed(nn.Linear(8, 24), nn.Linear(24, 12)), map_())) == [RULE]


def test_three_in_a_row() -> None:
    model = nn.Sequential(*convolutions(), nn.Conv2d(12, 6, 1))
    assert rules(check(model, map_())) == [RULE, RULE]


@pytest.mark.parametrize(
    "swap",
    [
        lambda x: x.transpose(1, 2),
        lambda x: x.permute(0, 2, 1),
        lambda x: x.permute(0, 2, 1).contiguous(),
    ],
)
def test_a_linear_layer_of_tokens_before_a_convolution(swap: Callable[[Tensor], Tensor]) -> None:
    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(8, 24), nn.Conv2d(24, 12, 1)

        def forward(self, x: Tensor) -> Tensor:
            rows = swap(self.first(x.flatten(2).transpose(1, 2)))
            return self.second(rows.reshape(x.shape[0], -1, *x.shape[2:]))

    assert rules(check(Decoder(), map_())) == [RULE]


def test_before_a_batch_norm() -> None:
    model = nn.Sequential(*convolutions(), nn.BatchNorm2d(12), nn.ReLU()).eval()
    model[2].running_mean.normal_()
    compiled, report = rewritten(model)
    x = map_().float()
    with torch.no_grad():
        assert relative(compiled(x), model(x)) < 1e-5
    assert rules(report) == [RULE, "folded_conv2d"]


def test_symbolic_sizes() -> None:
    model = convolutions().double()
    compiled, report = rewritten(model, dynamic=True, fullgraph=True)
    with torch.no_grad():
        for size in ((5, 7), (6, 11)):
            x = map_(2, 8, *size)
            torch.testing.assert_close(compiled(x), model(x))
    assert rules(report) == [RULE]


@pytest.mark.parametrize("linear", [False, True])
def test_a_new_weight_is_seen(linear: bool) -> None:
    model = nn.Sequential(nn.Linear(8, 24), nn.Linear(24, 12)) if linear else convolutions()
    compiled, report = rewritten(model.double())
    x = map_(2, 8, 5, 8)
    with torch.no_grad():
        for layer in model:
            torch.testing.assert_close(compiled(x), model(x))
            layer.weight.mul_(-2)
            layer.bias.add_(1)
            torch.testing.assert_close(compiled(x), model(x))
    assert rules(report) == [RULE]


UNFIT = {
    "cheaper apart": convolutions(4),
    "linear layers that are cheaper apart": nn.Sequential(nn.Linear(7, 3), nn.Linear(3, 12)),
    "a 3×3 convolution": convolutions(k=3),
    "a stride": convolutions(stride=2),
    "groups": convolutions(groups=2),
    "a stride of the first": nn.Sequential(nn.Conv2d(8, 24, 1, stride=2), nn.Conv2d(24, 12, 1)),
    "padding of the first": nn.Sequential(nn.Conv2d(8, 24, 1, padding=1), nn.Conv2d(24, 12, 1)),
    "a 3×3 convolution first": nn.Sequential(nn.Conv2d(8, 24, 3), nn.Conv2d(24, 12, 1)),
    "a ReLU": nn.Sequential(nn.Conv2d(8, 24, 1), nn.ReLU(), nn.Conv2d(24, 12, 1)),
    "a GELU": nn.Sequential(nn.Linear(7, 24), nn.GELU(), nn.Linear(24, 12)),
}


@pytest.mark.parametrize("model", UNFIT.values(), ids=UNFIT)
def test_other_layers_stay(model: nn.Module) -> None:
    assert RULE not in rules(check(model, map_()))


@pytest.mark.parametrize("layer", [nn.Conv2d(8, 24, 1), nn.Linear(7, 24)])
def test_a_first_layer_used_elsewhere_stays(layer: nn.Module) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = layer
            is_linear = isinstance(layer, nn.Linear)
            self.second = nn.Linear(24, 12) if is_linear else nn.Conv2d(24, 12, 1)

        def forward(self, x: Tensor) -> list[Tensor]:
            first = self.first(x)
            return [self.second(first), first.exp()]

    assert not rules(check(Shared(), map_()))


def test_gradients_that_may_be_asked_for() -> None:
    compiled, report = rewritten(convolutions().double())
    compiled(map_())
    assert not rules(report)
    assert f"{RULE}: gradients may be asked for" in reasons(report)


def test_autocast() -> None:
    compiled, report = rewritten(convolutions())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        compiled(map_().float())
    assert not rules(report)
    assert f"{RULE}: under autocast each layer rounds" in reasons(report)


def test_a_weight_computed_in_the_graph_stays() -> None:
    class Computed(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            first, second = self
            return second(F.conv2d(x, first.weight * 2, first.bias))

    report = check(Computed(*convolutions()), map_())
    assert not rules(report)
    assert "is no weight" in reasons(report)


@pytest.mark.parametrize("is_first", [False, True])
def test_a_weight_that_is_a_vector_stays(is_first: bool) -> None:
    class Vector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vector, self.matrix = nn.Parameter(torch.randn(8)), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            if is_first:
                return self.matrix(F.linear(x, self.vector))
            return F.linear(self.matrix(x), self.vector)

    assert not rules(check(Vector(), map_(2, 3, 8, 8)))

"""1×1 layers after interpolations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rewriting import check, reasons, rewritten, rules
from torch import Tensor, nn

POINTWISE = "pointwise_before_upsample"


def map_() -> Tensor:
    return torch.randn(2, 9, 7, 9, dtype=torch.float64)


class Chain(nn.Module):
    """A 1×1 layer after interpolations in a row, to ``sizes``."""

    def __init__(self, *sizes: tuple[int, int], layer: nn.Module | None = None) -> None:
        super().__init__()
        self.sizes = sizes
        self.layer = layer or nn.Conv2d(9, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        for i, size in enumerate(self.sizes):
            x = F.interpolate(x, size, mode="nearest" if i == 1 else "bilinear")
        if isinstance(self.layer, nn.Linear):
            return self.layer(x.permute(0, 2, 3, 1))
        return self.layer(x)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("layer", [nn.Conv2d, nn.Linear])
@pytest.mark.parametrize("sizes", [[(20, 31)], [(11, 13), (20, 31), (40, 50)]])
def test_a_layer_goes_before_a_chain(
    sizes: list[tuple[int, int]], layer: type[nn.Module], layout: torch.memory_format
) -> None:
    model = Chain(*sizes, layer=layer(9, 5, 1) if layer is nn.Conv2d else layer(9, 5))
    report = check(model, map_().contiguous(memory_format=layout))
    assert rules(report) == [POINTWISE]
    assert report.applications[0].replaced.count("upsample_bilinear2d") == (len(sizes) + 1) // 2


def test_a_layer_goes_to_the_smallest_map_of_a_chain() -> None:
    report = check(Chain((5, 6), (20, 31)), torch.randn(1, 9, 12, 13, dtype=torch.float64))
    assert rules(report) == [POINTWISE]
    assert report.applications[0].replaced == ("upsample_nearest2d", "conv2d")


def test_a_layer_passes_what_shrinks_after_it_grew() -> None:
    report = check(Chain((20, 31), (10, 12)), map_())
    assert rules(report) == [POINTWISE]
    assert len(report.applications[0].replaced) == 3


def test_a_chain_of_symbolic_sizes() -> None:
    model = Chain((20, 31), (40, 50)).double()
    compiled, report = rewritten(model, dynamic=True, fullgraph=True)
    for size in ((7, 9), (8, 11)):
        x = torch.randn(2, 9, *size, dtype=torch.float64)
        torch.testing.assert_close(compiled(x), model(x))
    assert set(rules(report)) == {POINTWISE}


@pytest.mark.parametrize("layer", [nn.Conv2d(9, 10, 1), nn.Linear(9, 10)])
def test_a_layer_to_more_channels_stays_after_a_chain(layer: nn.Module) -> None:
    report = check(Chain((11, 13), (20, 31), layer=layer), map_())
    assert POINTWISE not in rules(report)
    assert "10 channels would be interpolated" in reasons(report)


@pytest.mark.parametrize("layer", [nn.Conv2d(9, 5, 1), nn.Linear(9, 5)])
def test_a_layer_stays_after_a_chain_that_shrinks(layer: nn.Module) -> None:
    report = check(Chain((6, 8), (5, 6), layer=layer), map_())
    assert not rules(report)
    assert "the map does not grow" in reasons(report)


def test_a_layer_stops_at_a_map_of_the_chain_used_elsewhere() -> None:
    class Shared(Chain):
        def forward(self, x: Tensor) -> Any:
            first = F.interpolate(x, (11, 13), mode="bilinear")
            return self.layer(F.interpolate(first, (20, 31), mode="bilinear")), first.exp()

    report = check(Shared(), map_())
    # The other rule finds the convolution of the map that is needed anyway.
    assert rules(report) == [POINTWISE, "upsample_concat_conv2d"]


def test_a_linear_layer_of_a_map_used_elsewhere_stays() -> None:
    class Shared(Chain):
        def forward(self, x: Tensor) -> Any:
            rows = F.interpolate(x, (20, 31), mode="bilinear").permute(0, 2, 3, 1)
            return self.layer(rows), rows.exp()

    report = check(Shared(layer=nn.Linear(9, 5)), map_())
    assert not rules(report)
    assert "used elsewhere" in reasons(report)


def test_a_linear_layer_of_rows_stays() -> None:
    class Rows(Chain):
        def forward(self, x: Tensor) -> Any:
            return self.layer(F.interpolate(x, (20, 9), mode="bilinear"))

    assert not rules(check(Rows(layer=nn.Linear(9, 5)), map_()))


def test_a_linear_layer_of_one_vector_stays() -> None:
    class Vector(Chain):
        def forward(self, x: Tensor) -> Any:
            rows = F.interpolate(x, (20, 31), mode="bilinear").permute(0, 2, 3, 1)
            return F.linear(rows, self.layer.weight[0])

    assert not rules(check(Vector(layer=nn.Linear(9, 5)), map_()))

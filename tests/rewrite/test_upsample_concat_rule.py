"""Convolutions over upsampled and concatenated maps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rewriting import check, reasons, rewritten, rules
from torch import Tensor, nn

RULE = "upsample_concat_conv2d"


class Fusion(nn.Module):
    """``conv(cat(maps, 1))``, each map brought to the size of the first."""

    def __init__(self, k: int = 3, channels: int = 15, bias: bool = True, **conv: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 7, k, padding=k // 2, bias=bias, **conv)
        self.interpolation: dict[str, Any] = {"mode": "bilinear", "align_corners": False}

    def up(self, x: Tensor, to: Tensor) -> Tensor:
        return F.interpolate(x, to.shape[2:], **self.interpolation)

    def forward(self, *maps: Tensor) -> Tensor:
        return self.conv(torch.cat([maps[0], *(self.up(m, maps[0]) for m in maps[1:])], 1))


def maps(*sizes: tuple[int, int], batch: int = 2, dtype: torch.dtype = torch.float64) -> list:
    return [torch.randn(batch, 15 // len(sizes), *size, dtype=dtype) for size in sizes]


PYRAMID = (13, 18), (7, 9), (3, 5)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize(
    "interpolation",
    [
        {"mode": "bilinear", "align_corners": False},
        {"mode": "bilinear", "align_corners": True},
        {"mode": "nearest"},
    ],
)
def test_applies(k: int, interpolation: dict[str, Any]) -> None:
    model = Fusion(k)
    model.interpolation = interpolation
    assert RULE in rules(check(model, *maps(*PYRAMID)))


def test_channels_last() -> None:
    inputs = [m.contiguous(memory_format=torch.channels_last) for m in maps(*PYRAMID)]
    assert RULE in rules(check(Fusion(), *inputs))


def test_batch_of_one_and_no_bias() -> None:
    assert RULE in rules(check(Fusion(bias=False), *maps(*PYRAMID, batch=1)))


def test_reversed_and_nested_concatenations() -> None:
    class Reversed(Fusion):
        def forward(self, *maps: Tensor) -> Tensor:
            a, b, c = maps
            inner = torch.cat([self.up(c, a), self.up(b, a)], dim=-3)
            return self.conv(torch.cat([inner, a], 1))

    report = check(Reversed(), *maps(*PYRAMID))
    assert rules(report) == [RULE]
    assert len(report.applications[0].replaced) == 5


def test_every_map_upsampled_by_a_factor() -> None:
    class Factor(Fusion):
        def forward(self, *maps: Tensor) -> Tensor:
            ups = [F.interpolate(m, scale_factor=2, mode="nearest") for m in maps]
            return self.conv(torch.cat(ups, 1))

    assert RULE in rules(check(Factor(), *maps((5, 6), (5, 6), (5, 6))))


@pytest.mark.parametrize(
    "module",
    [
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.Upsample(scale_factor=2),
        nn.Upsample(size=(15, 20), mode="bilinear"),
        nn.UpsamplingBilinear2d(scale_factor=4),
    ],
    ids=str,
)
def test_modules_that_upsample(module: nn.Module) -> None:
    assert rules(check(nn.Sequential(module, Fusion().conv), *maps((7, 9)))) == [RULE]


def test_one_map() -> None:
    class Alone(Fusion):
        def forward(self, x: Tensor) -> Tensor:
            return self.conv(F.interpolate(x, (11, 17), mode="bilinear"))

    assert RULE in rules(check(Alone(), *maps((5, 6))))


def test_other_interpolations_in_between_stay() -> None:
    class Mixed(Fusion):
        def forward(self, *maps: Tensor) -> Tensor:
            a, b, c = maps
            cubic = F.interpolate(c, a.shape[2:], mode="bicubic")
            return self.conv(torch.cat([a, self.up(b, a), cubic], 1))

    report = check(Mixed(), *maps((13, 18), (5, 6), (3, 5)))
    assert report.applications[0].replaced == ("upsample_bilinear2d", "cat", "conv2d")


def test_maps_that_shrink_are_interpolated_as_before() -> None:
    class Shrinking(Fusion):
        def forward(self, *maps: Tensor) -> Tensor:
            return self.conv(torch.cat([self.up(m, maps[1]) for m in maps], 1))

    report = check(Shrinking(), *maps((26, 36), (13, 18), (5, 6)))
    assert rules(report) == ["same_size_upsample", RULE]
    assert report.applications[1].replaced == ("upsample_bilinear2d", "cat", "conv2d")


def test_the_upsampled_map_may_be_used_elsewhere() -> None:
    class Shared(Fusion):
        def forward(self, *maps: Tensor) -> Any:
            up = [self.up(m, maps[0]) for m in maps[1:]]
            return self.conv(torch.cat([maps[0], *up], 1)), up[0]

    assert RULE in rules(check(Shared(), *maps(*PYRAMID)))


@pytest.mark.parametrize("k", [1, 3])
def test_symbolic_sizes(k: int) -> None:
    model = Fusion(k).double()
    compiled, report = rewritten(model, dynamic=True, fullgraph=True)
    for size in ((13, 18), (20, 31)):
        inputs = maps(size, (7, 9), (3, 5))
        torch.testing.assert_close(compiled(*inputs), model(*inputs))
    assert rules(report) == [RULE]


@pytest.mark.parametrize("conv", [{"stride": 2}, {"groups": 3}, {"dilation": 2}, {"padding": 0}])
def test_other_convolutions_stay(conv: dict[str, Any]) -> None:
    model = Fusion()
    model.conv = nn.Conv2d(15, 9, 3, **{"padding": 1, **conv})
    assert RULE not in rules(check(model, *maps(*PYRAMID)))


def test_reflected_padding_stays() -> None:
    model = Fusion(padding_mode="reflect")
    assert RULE not in rules(check(model, *maps(*PYRAMID)))


@pytest.mark.parametrize(
    "interpolation",
    [
        {"mode": "bicubic"},
        {"mode": "nearest-exact"},
        {"mode": "area"},
        {"mode": "bilinear", "antialias": True},
    ],
)
def test_other_modes_stay(interpolation: dict[str, Any]) -> None:
    model = Fusion()
    model.interpolation = interpolation
    assert RULE not in rules(check(model, *maps(*PYRAMID)))


def test_a_factor_that_is_not_the_ratio_of_sizes_stays() -> None:
    class Factor(Fusion):
        def forward(self, x: Tensor) -> Tensor:
            return self.conv(F.interpolate(x, scale_factor=1.9, mode="bilinear"))

    assert RULE not in rules(check(Factor(), *maps((9, 7))))


def test_maps_that_hardly_grow_stay() -> None:
    report = check(Fusion(channels=14), *maps((10, 10), (10, 9)))
    assert RULE not in rules(report)
    assert "of the multiplications would be left" in reasons(report)


def test_a_concatenation_of_rows_stays() -> None:
    class Rows(Fusion):
        def forward(self, x: Tensor) -> Tensor:
            up = F.interpolate(x, scale_factor=2.0, mode="bilinear")
            return self.conv(torch.cat([up, up], 2))

    assert RULE not in rules(check(Rows(), *maps((5, 6))))


def test_a_source_written_after_its_interpolation_stays() -> None:
    class Written(Fusion):
        def forward(self, *maps: Tensor) -> Any:
            small = maps[1] * 2
            view = small[:, 1:]
            up = self.up(small, maps[0])
            view.mul_(3)
            return self.conv(torch.cat([maps[0], up], 1)), small

    model = Written(channels=14)
    inputs = maps((9, 11), (4, 5))
    report = check(model, *inputs)
    assert RULE not in rules(report)
    assert "writes into a tensor of it" in reasons(report)


def test_the_concatenation_written_in_place_stays() -> None:
    class Written(Fusion):
        def forward(self, *maps: Tensor) -> Any:
            x = torch.cat([maps[0], self.up(maps[1], maps[0])], 1)
            head = x[:, :3]
            head.mul_(3)
            return self.conv(x)

    assert RULE not in rules(check(Written(channels=14), *maps((9, 11), (4, 5))))


def test_autocast() -> None:
    model = Fusion()
    inputs = maps(*PYRAMID, dtype=torch.float32)
    compiled, report = rewritten(model)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        out, eager = compiled(*inputs), model(*inputs)
    assert RULE in rules(report)
    assert out.dtype == eager.dtype == torch.bfloat16
    exact = model(*inputs)
    assert (out - exact).norm() <= 1.5 * (eager - exact).norm()


def test_an_autocast_region_in_the_model_stays() -> None:
    class Region(Fusion):
        def forward(self, *maps: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return super().forward(*maps)

    model = Region()
    compiled, report = rewritten(model)
    inputs = maps(*PYRAMID, dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(compiled(*inputs), model(*inputs))
    assert RULE not in rules(report)
    assert "autocast region" in reasons(report)


def test_a_grad_mode_that_changes_within_stays() -> None:
    class Frozen(Fusion):
        def forward(self, *maps: Tensor) -> Tensor:
            with torch.no_grad():
                up = self.up(maps[1], maps[0])
            return self.conv(torch.cat([maps[0], up], 1))

    inputs = [m.requires_grad_() for m in maps((9, 11), (4, 5))]
    model = Frozen(channels=14).double()
    compiled, report = rewritten(model)
    compiled(*inputs).sum().backward()
    assert inputs[1].grad is None
    assert RULE not in rules(report)
    assert "the grad mode changes" in reasons(report)

"""Pools, convolutions with what follows them, layers in a row, and BatchNorm."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rewriting import check, reasons, relative, rewritten, rules, same
from torch import Tensor, nn


def map_(channels: int = 16, size: tuple[int, int] = (17, 23)) -> Tensor:
    return torch.randn(2, channels, *size, dtype=torch.float64)


def with_statistics(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.5)
            module.running_var.uniform_(0.5, 2)
            if module.affine:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
    return model.eval()


def inference(model: nn.Module, *inputs: Tensor, tolerance: float = 1e-5) -> list[str]:
    """The rules that apply to float32 maps of either memory format, after comparing results."""
    applied = []
    for layout in (torch.contiguous_format, torch.channels_last):
        model = model.float().to(memory_format=layout)
        maps = [x.float().contiguous(memory_format=layout) for x in inputs]
        compiled, report = rewritten(model)
        with torch.no_grad():
            same(compiled(*maps), model(*maps), tolerance)
        applied.append(rules(report))
    assert set(applied[0]) <= set(applied[1])
    return applied[1]


class Pools(nn.Module):
    def __init__(self, *sizes: Any) -> None:
        super().__init__()
        self.pools = nn.ModuleList(map(nn.AdaptiveAvgPool2d, sizes))

    def forward(self, x: Tensor) -> list[Tensor]:
        return [pool(x) for pool in self.pools]


def test_pools() -> None:
    report = check(Pools(1, 6, (2, 2), 3, 2), map_())
    assert rules(report) == ["pyramid_pool"] * 5


def test_pools_of_channels_last_maps() -> None:
    report = check(Pools(1, 2, 3), map_().contiguous(memory_format=torch.channels_last))
    assert rules(report) == ["pyramid_pool"] * 3


@pytest.mark.parametrize("sizes", [(2,), (2, (2, 3)), (1, (None, 2))])
def test_other_pools_stay(sizes: tuple[Any, ...]) -> None:
    assert not rules(check(Pools(*sizes), map_()))


def test_pools_of_more_bins_than_the_operator_takes_stay() -> None:
    report = check(Pools(40, 41), map_(size=(50, 50)))
    assert not rules(report)
    assert "expected a sum of at most 64" in reasons(report)


def test_pools_of_a_map_written_in_between_stay() -> None:
    class Written(Pools):
        def forward(self, x: Tensor) -> Any:
            y = x * 2
            part = y[:, 3:]
            first = self.pools[0](y)
            part.mul_(3)
            return first, self.pools[1](y)

    report = check(Written(1, 2), map_())
    assert not rules(report)
    assert "writes into a tensor of it" in reasons(report)


class Block(nn.Module):
    """conv, BatchNorm, residual, ReLU."""

    def __init__(self, k: int = 3, in_place: bool = True, **options: Any) -> None:
        super().__init__()
        options = {"padding": k // 2, **options}
        self.conv = nn.Conv2d(64, 64, k, **options)
        self.norm = nn.BatchNorm2d(64)
        self.in_place = in_place

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm(self.conv(x))
        out = out.add_(x) if self.in_place else x + out
        return F.relu(out, inplace=self.in_place)


@pytest.mark.parametrize(
    "options",
    [
        {"k": 3},
        {"k": 3, "padding": 2, "dilation": 2, "bias": False},
        {"k": 1},
        {"k": 1, "groups": 4},
    ],
)
@pytest.mark.parametrize("in_place", [False, True])
def test_folded(options: dict[str, Any], in_place: bool) -> None:
    model = with_statistics(Block(**options, in_place=in_place))
    applied = inference(model, map_(64))
    assert applied == ["folded_conv2d"]
    compiled, report = rewritten(model)
    compiled(map_(64).float())
    assert "folded_conv2d" not in rules(report), "gradients are enabled"


def test_folded_whole() -> None:
    model = with_statistics(Block()).to(memory_format=torch.channels_last)
    compiled, report = rewritten(model)
    with torch.no_grad():
        compiled(map_(64).float().contiguous(memory_format=torch.channels_last))
    assert report.applications[0].replaced == ("conv2d", "batch_norm", "add", "relu")


def test_folded_into_a_fusion() -> None:
    class Fusion(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(10, 6, 1, bias=False)
            self.norm = nn.BatchNorm2d(6, affine=False)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            up = F.interpolate(b, a.shape[2:], mode="bilinear")
            return self.norm(self.conv(torch.cat([a, up], 1))).relu()

    model = with_statistics(Fusion())
    assert inference(model, map_(5), map_(5, (5, 6))) == ["upsample_concat_conv2d", "folded_conv2d"]


def test_a_convolution_read_elsewhere_keeps_its_batch_norm() -> None:
    class Shared(Block):
        def forward(self, x: Tensor) -> Any:
            out = self.conv(x)
            return self.norm(out).relu(), out

    model = with_statistics(Shared(k=1))
    assert inference(model, map_(64)) == []


def test_a_sum_that_broadcasts_stays() -> None:
    class Broadcast(Block):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.norm(self.conv(x)) + x.mean((2, 3), keepdim=True))

    model = with_statistics(Broadcast(k=1))
    assert inference(model, map_(64)) == ["folded_conv2d"]


def test_a_weight_computed_in_the_graph_stays() -> None:
    class Standardized(Block):
        def forward(self, x: Tensor) -> Tensor:
            weight = self.conv.weight - self.conv.weight.mean((1, 2, 3), keepdim=True)
            return F.relu(self.norm(F.conv2d(x, weight, self.conv.bias)))

    model = with_statistics(Standardized(k=1))
    assert inference(model, map_(64)) == []


def test_gradients_of_training_take_winograd() -> None:
    class Plain(nn.Conv2d):
        pass

    model = Plain(64, 64, 3, padding=2, dilation=2)
    other = Plain(64, 64, 3, padding=2, dilation=2)
    other.load_state_dict(model.state_dict())
    compiled, report = rewritten(other)
    x = torch.randn(1, 64, 64, 64)
    pairs = []
    for function, module in ((compiled, other), (model, model)):
        leaf = x.clone().requires_grad_()
        out = function(leaf)
        out.square().mean().backward()
        pairs.append([out, leaf.grad, module.weight.grad, module.bias.grad])
    (out, *gradients), (expected, *expected_gradients) = pairs
    assert torch.equal(out, expected)
    for ours, eager in zip(gradients, expected_gradients, strict=True):
        assert relative(ours, eager) < 1e-5
    assert not torch.equal(gradients[0], expected_gradients[0])
    assert rules(report) == ["dilated_conv2d"]


def test_gradients_under_autocast_take_winograd() -> None:
    model = nn.Conv2d(64, 64, 3, padding=1)
    x = torch.randn(1, 64, 64, 64)
    compiled, report = rewritten(model)
    results = []
    for function in (compiled, model):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            out = function(x)
        out.float().square().mean().backward()
        results.append((out, model.weight.grad, model.bias.grad))
    for ours, eager in zip(*results, strict=True):
        assert ours.dtype == eager.dtype
        assert relative(ours, eager) < 1e-2
    assert rules(report) == ["dilated_conv2d"]


@pytest.mark.parametrize(
    "options",
    [{"padding": 1, "dilation": 2}, {"padding": 1, "stride": 2}, {"padding": 1, "groups": 2}],
)
def test_other_convolutions_stay_the_library_s(options: dict[str, Any]) -> None:
    compiled, report = rewritten(nn.Conv2d(64, 64, 3, **options))
    compiled(torch.randn(1, 64, 64, 64))
    assert not rules(report)


def test_double_precision_stays_the_library_s() -> None:
    compiled, report = rewritten(nn.Conv2d(64, 64, 3, padding=1).double())
    compiled(torch.randn(1, 64, 64, 64, dtype=torch.float64))
    assert not rules(report) and "the library is faster" in reasons(report)


def training_rules(model: nn.Module, *inputs: Tensor) -> tuple[list[str], str]:
    """After comparing results, gradients and statistics of a step with eager's."""
    check(model.train(), *inputs)
    compiled, report = rewritten(model)
    compiled(*inputs)
    return rules(report), reasons(report)


@pytest.mark.parametrize("in_place", [False, True])
def test_batch_norm_of_training(in_place: bool) -> None:
    applied, _ = training_rules(Block(in_place=in_place), map_(64, (5, 7)))
    assert applied == ["batch_norm_relu"]


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm2d(64, affine=False),
        nn.BatchNorm2d(64, momentum=None),
        nn.BatchNorm2d(64, track_running_stats=False),
    ],
    ids=["without weights", "cumulative", "without statistics"],
)
def test_other_batch_norms(norm: nn.Module) -> None:
    model = Block()
    model.norm = norm
    training_rules(model, map_(64, (5, 7)))


def test_batch_norm_without_a_relu_stays() -> None:
    class Linear(Block):
        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(x)) + x

    assert training_rules(Linear(), map_(64, (5, 7)))[0] == []


def test_batch_norm_of_one_value_raises_as_eager_does() -> None:
    compiled, _ = rewritten(Block(k=1).train())
    with pytest.raises(Exception, match=r"at least 2 values per channel|more than 1 value per"):
        compiled(torch.randn(1, 64, 1, 1))


class Fused(nn.Module):
    """SegFormer's decoder: a linear layer of tokens on each map, then a 1×1 convolution of all."""

    def __init__(self, inner: int = 24) -> None:
        super().__init__()
        self.first = nn.Linear(8, inner)
        self.second = nn.Conv2d(8, inner, 1)
        self.fuse = nn.Conv2d(2 * inner, 12, 1, bias=False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        tokens = self.first(a.flatten(2).transpose(1, 2))
        a = tokens.permute(0, 2, 1).reshape(a.shape[0], -1, *a.shape[2:])
        b = F.interpolate(self.second(b), a.shape[2:], mode="bilinear")
        return self.fuse(torch.cat([b, a], 1))


def test_layers_in_a_row() -> None:
    report = check(Fused(), map_(8), map_(8, (5, 6)))
    assert rules(report) == ["upsample_concat_conv2d", "merged_pointwise"]


def test_layers_in_a_row_before_a_batch_norm() -> None:
    class Decoder(Fused):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(12)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.norm(super().forward(a, b)).relu()

    applied = inference(with_statistics(Decoder()), map_(8), map_(8, (5, 6)))
    assert applied == ["upsample_concat_conv2d", "merged_pointwise", "folded_conv2d"]


def test_layers_in_a_row_that_are_cheaper_apart_stay() -> None:
    report = check(Fused(4), map_(8), map_(8, (5, 6)))
    assert rules(report) == ["upsample_concat_conv2d"]


def test_layers_in_a_row_stay_under_autocast() -> None:
    compiled, report = rewritten(Fused())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        compiled(map_(8).float(), map_(8, (5, 6)).float())
    assert "merged_pointwise" not in rules(report)
    assert "under autocast each layer rounds" in reasons(report)

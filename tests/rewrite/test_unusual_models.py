"""Models that do what layers in a row do not: equal to eager mode, whatever rules apply."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils.parametrizations as parametrizations
from rewriting import check, reasons, rewritten, rules, same
from torch import Tensor, nn


def up(x: Tensor, **options: Any) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", **options)


def map_(*size: int) -> Tensor:
    return torch.randn(size or (2, 6, 7, 9), dtype=torch.float64)


class Model(nn.Module):
    """``forward`` and three layers of it."""

    def __init__(self, function: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.function = function
        self.conv = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.classifier = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def block(model: Any, x: Tensor) -> Tensor:
    return model.classifier(F.relu(model.norm(model.conv(up(x)))))


def upsampled_once_used_twice(model: Any, x: Tensor) -> Any:
    u = up(x)
    return model.conv(u) + u.mean(), model.classifier(u)


def one_convolution_twice(model: Any, x: Tensor) -> Any:
    return model.conv(model.conv(up(x))), model.conv(x)


def norm_of_two_convolutions(model: Any, x: Tensor) -> Any:
    return F.relu(model.norm(model.conv(x))) + F.relu(model.norm(model.conv(x * 2)))


def concatenation_in_a_dictionary(model: Any, x: Tensor) -> Any:
    maps = torch.cat([up(x[:, :3]), F.interpolate(x[:, 3:], (14, 18), mode="nearest")], 1)
    return {"out": model.conv(maps), "maps": maps[:, 2:], "nothing": None}


def branches_on_values(model: Any, x: Tensor) -> Any:
    y = model.conv(up(x))
    return F.relu(model.norm(y if y.sum() > 1e9 else y * 2))


def detached_in_part(model: Any, x: Tensor) -> Any:
    weight = model.conv.weight.detach()
    return F.conv2d(up(x), weight, padding=1) + model.conv(up(x).detach())


def dropout_that_keeps_all(model: Any, x: Tensor) -> Any:
    return model.conv(F.dropout2d(up(x), 0.0, model.training))


def standardised_weight(model: Any, x: Tensor) -> Any:
    weight = model.conv.weight
    weight = weight - weight.mean((1, 2, 3), keepdim=True)
    return F.relu(model.norm(F.conv2d(up(x), weight, padding=1)))


def same_sum_of_itself(model: Any, x: Tensor) -> Any:
    y = model.norm(model.conv(x))
    return F.relu(y + y)


def transposed_slices(model: Any, x: Tensor) -> Any:
    return model.conv(up(x.transpose(2, 3)[:, :, ::2]))


@pytest.mark.parametrize(
    "function",
    [
        upsampled_once_used_twice,
        one_convolution_twice,
        norm_of_two_convolutions,
        concatenation_in_a_dictionary,
        branches_on_values,
        detached_in_part,
        dropout_that_keeps_all,
        standardised_weight,
        same_sum_of_itself,
        transposed_slices,
    ],
)
def test_forwards(function: Callable[[Any, Tensor], Any]) -> None:
    model = Model(function)
    check(copy.deepcopy(model), map_())
    assert rules(check(model.eval(), map_()))


@pytest.mark.parametrize("wrap", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_parametrized_weights(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = Model(block)
    wrap(model.conv)
    check(copy.deepcopy(model), map_())
    report = check(model.eval(), map_())
    assert "is no weight" in reasons(report)


@pytest.mark.parametrize("momentum", [0.3, None])
@pytest.mark.parametrize("options", [{"affine": False}, {"track_running_stats": False}])
def test_batch_norms(momentum: float | None, options: dict[str, bool]) -> None:
    model = Model(block)
    model.norm = nn.BatchNorm2d(6, momentum=momentum, **options)
    check(copy.deepcopy(model), map_())
    check(model.eval(), map_())


def test_hooks_on_modules() -> None:
    model = Model(block).eval()
    model.conv.register_forward_hook(lambda module, inputs, out: out * 2)
    model.conv.register_full_backward_hook(lambda module, before, after: (before[0] * 3,))
    check(model, map_())


def test_frozen_weights() -> None:
    model = Model(block).double()
    for parameter in (model.conv.weight, model.norm.weight):
        parameter.requires_grad_(False)
    x = map_()
    results = []
    for network in (copy.deepcopy(model), model):
        run = network if network is model else rewritten(network)[0]
        out = run(x)
        out.square().mean().backward()
        results.append([out.detach(), [p.grad for p in network.parameters()]])
    same(*results, 1e-10)


def test_gradients_of_gradients() -> None:
    model = Model(block).double()
    points = map_()
    results = []
    for run in (rewritten(model)[0], model):
        x = points.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(run(x).pow(3).sum(), x, create_graph=True)
        gradient.square().sum().backward()
        results.append([x.grad, model.conv.weight.grad])
        model.zero_grad()
    same(*results, 1e-10)


def grad(model: nn.Module, x: Tensor) -> Any:
    weights = dict(model.named_parameters())

    def loss(weights: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, weights, (x,)).square().mean()

    return torch.func.grad(loss)(weights)


def jvp(model: nn.Module, x: Tensor) -> Any:
    return torch.func.jvp(model, (x,), (x.cos(),))


def vmap(model: nn.Module, x: Tensor) -> Any:
    return torch.func.vmap(model)(x[:, None])


@pytest.mark.parametrize("transform", [grad, jvp, vmap])
def test_transforms_of_functions_stay(transform: Callable[[nn.Module, Tensor], Any]) -> None:
    model = Model(lambda self, x: self.conv(up(x))).double()
    compiled, report = rewritten(lambda x: transform(model, x))
    x = map_()
    with torch.no_grad():
        same(compiled(x), transform(model, x), 1e-10)
    assert not rules(report)
    # Under vmap torch records what is done to the whole batch.
    assert transform is vmap or "torch.func" in reasons(report)


def test_complex_numbers_stay() -> None:
    layers = [nn.Conv2d(6, 20, 1), nn.Conv2d(20, 3, 1), nn.Conv2d(3, 3, 3, padding=1)]
    model = nn.Sequential(*layers).to(torch.complex128)
    compiled, report = rewritten(model)
    x = torch.complex(map_(), map_())
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x))
    assert not rules(report)


def test_equal_pools_have_memory_of_their_own() -> None:
    def pools(x: Tensor) -> list[Tensor]:
        return [F.adaptive_avg_pool2d(x, 2) for _ in range(2)]

    compiled, report = rewritten(pools)
    x = map_()
    with torch.no_grad():
        first, second = compiled(x)
        first.zero_()
        same(second, pools(x)[1], 1e-10)
    assert rules(report) == ["pyramid_pool"] * 2


@pytest.mark.parametrize("is_view", [False, True])
def test_a_residual_written_afterwards(is_view: bool) -> None:
    """The rewritten block keeps it for backward, where the ReLU of eager mode keeps its result."""

    def function(model: Any, x: Tensor) -> Any:
        residual = x * 1
        view = residual[:, :3]
        out = F.relu(model.norm(model.conv(x)) + residual)
        (view if is_view else residual).add_(1)
        return out, residual

    check(Model(function), map_())


def test_a_source_written_without_gradients_afterwards() -> None:
    """Interpolation does not keep it, a convolution before interpolation does."""

    def function(model: Any, x: Tensor) -> Any:
        source = x * 1
        out = model.conv(up(source))
        with torch.no_grad():
            source.add_(1)
        return out, source

    check(Model(function), map_())

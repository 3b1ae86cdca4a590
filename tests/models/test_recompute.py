import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pspfast import PSPNet
from pspfast.models import recompute
from pspfast.models.recompute import norm_relu


def make_layers(channels: int = 5) -> tuple[nn.BatchNorm2d, nn.ReLU, nn.Conv2d]:
    bn = nn.BatchNorm2d(channels)
    nn.init.uniform_(bn.weight, 0.5, 1.5)
    nn.init.normal_(bn.bias)
    return bn, nn.ReLU(inplace=True), nn.Conv2d(channels, 3, 1)


def plainly(z: Tensor, bn: nn.Module, relu: nn.Module, then: nn.Module) -> Tensor:
    return then(relu(bn(z)))


def gradients(function: Callable[..., Tensor], layers: tuple[Any, ...], z: Tensor) -> list[Tensor]:
    bn, relu, conv = copy.deepcopy(layers)
    z = z.clone().requires_grad_()
    out = function(z, bn, relu, conv)
    leaves = [z, *bn.parameters(), *conv.parameters()]
    return [out, *torch.autograd.grad(out.square().sum(), leaves), bn.running_mean, bn.running_var]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_gradients_are_the_same_bits(
    memory_format: torch.memory_format, dtype: torch.dtype
) -> None:
    layers, z = make_layers(), torch.randn(2, 5, 9, 7).contiguous(memory_format=memory_format)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        ours, eager = gradients(norm_relu, layers, z), gradients(plainly, layers, z)
    assert all(torch.equal(a, b) for a, b in zip(ours, eager, strict=True))


@pytest.mark.parametrize("layers", [18, 50])
def test_gradients_of_the_network_are_the_same_bits(
    layers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = PSPNet(layers, classes=4, dropout=0.0)
    images, labels = torch.randn(2, 3, 41, 33), torch.randint(0, 4, (2, 41, 33))

    def run() -> list[Tensor]:
        copied = copy.deepcopy(model)
        _, main_loss, aux_loss = copied(images, labels)
        (main_loss + aux_loss).backward()
        return [main_loss, *(p.grad for p in copied.parameters()), *copied.buffers()]

    ours = run()
    monkeypatch.setattr(recompute, "_is_recomputed", lambda *_: False)
    assert all(torch.equal(a, b) for a, b in zip(ours, run(), strict=True))


def test_the_normalised_map_is_not_kept() -> None:
    kept: list[Tensor] = []

    class Keep(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x.sum()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            kept.extend(ctx.saved_tensors)
            return grad.expand_as(kept[-1])

    bn, relu, _ = make_layers()
    z = torch.randn(2, 5, 9, 7, requires_grad=True)
    seen: list[Tensor] = []

    def then(x: Tensor) -> Tensor:
        seen.append(x.detach().clone())
        out = Keep.apply(x)
        # What was saved may be overwritten now: it is not the map itself.
        x.detach().fill_(float("nan"))
        return out

    norm_relu(z, bn, relu, then).backward()
    assert torch.equal(kept[0], seen[0])
    assert z.grad is not None and z.grad.isfinite().all()


def test_second_derivatives() -> None:
    layers = make_layers()
    z = torch.randn(2, 5, 3, 2, dtype=torch.float64)
    for layer in layers:
        layer.double()

    def second(function: Callable[..., Tensor]) -> Tensor:
        bn, relu, conv = copy.deepcopy(layers)
        leaf = z.clone().requires_grad_()
        loss = function(leaf, bn, relu, conv).pow(3).sum()
        (first,) = torch.autograd.grad(loss, leaf, create_graph=True)
        return torch.autograd.grad(first.square().sum(), leaf)[0]

    torch.testing.assert_close(second(norm_relu), second(plainly))


def test_backward_twice() -> None:
    bn, relu, conv = make_layers()
    out = norm_relu(torch.randn(2, 5, 9, 7, requires_grad=True), bn, relu, conv).sum()
    first = torch.autograd.grad(out, conv.weight, retain_graph=True)
    assert torch.equal(*first, *torch.autograd.grad(out, conv.weight))


def test_hooks_see_and_change_the_maps() -> None:
    layers, z = make_layers(), torch.randn(2, 5, 9, 7)
    layers[0].register_forward_hook(lambda module, inputs, output: output * 2)
    ours, eager = gradients(norm_relu, layers, z), gradients(plainly, layers, z)
    assert all(torch.equal(a, b) for a, b in zip(ours, eager, strict=True))


def test_a_weight_changed_before_backward_is_an_error() -> None:
    bn, relu, conv = make_layers()
    out = norm_relu(torch.randn(2, 5, 9, 7, requires_grad=True), bn, relu, conv)
    with torch.no_grad():
        bn.bias.add_(1)
    with pytest.raises(RuntimeError, match=r"^PSPNet: backward: a BatchNorm's weight, bias or inp"):
        out.sum().backward()


def test_frozen_batch_norm() -> None:
    layers, z = make_layers(), torch.randn(2, 5, 9, 7)
    layers[0].eval()
    ours, eager = gradients(norm_relu, layers, z), gradients(plainly, layers, z)
    assert all(torch.equal(a, b) for a, b in zip(ours, eager, strict=True))

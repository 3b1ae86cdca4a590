import contextlib
import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from pspfast import PSPNet
from pspfast.models import pspnet
from pspfast.models.recompute import norm, norm_relu, recompute_normalized_maps


def make_layers(channels: int = 5) -> tuple[nn.BatchNorm2d, nn.ReLU, nn.Conv2d]:
    bn = nn.BatchNorm2d(channels)
    nn.init.uniform_(bn.weight, 0.5, 1.5)
    nn.init.normal_(bn.bias)
    return bn, nn.ReLU(inplace=True), nn.Conv2d(channels, 3, 1)


def block(x: Tensor, bn: nn.Module, relu: nn.Module, then: nn.Module) -> Tensor:
    """One of one layer with a residual connection, on top of another one."""
    first, residual = norm_relu(x, bn, relu), norm(x, bn)
    return then(norm_relu(first * 2, bn, relu, residual))


def recomputed(*args: Any) -> Tensor:
    with recompute_normalized_maps():
        return block(*args)


def plainly(x: Tensor, bn: nn.Module, relu: nn.Module, then: nn.Module) -> Tensor:
    first, residual = relu(bn(x)), bn(x)
    return then(relu(bn(first * 2) + residual))


def gradients(function: Callable[..., Tensor], layers: tuple[Any, ...], x: Tensor) -> list[Tensor]:
    bn, relu, conv = copy.deepcopy(layers)
    x = x.clone().requires_grad_()
    out = function(x, bn, relu, conv)
    leaves = [x, *bn.parameters(), *conv.parameters()]
    return [out, *torch.autograd.grad(out.square().sum(), leaves), bn.running_mean, bn.running_var]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_gradients_are_the_same_bits_as_of_kept_maps(
    memory_format: torch.memory_format, dtype: torch.dtype
) -> None:
    layers, x = make_layers(), torch.randn(2, 5, 9, 7).contiguous(memory_format=memory_format)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        ours, kept = gradients(recomputed, layers, x), gradients(block, layers, x)
    assert all(torch.equal(a, b) for a, b in zip(ours, kept, strict=True))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_gradients_are_those_of_modules(memory_format: torch.memory_format) -> None:
    layers, x = make_layers(), torch.randn(2, 5, 9, 7).contiguous(memory_format=memory_format)
    ours, eager = gradients(recomputed, layers, x), gradients(plainly, layers, x)
    torch.testing.assert_close(ours, eager, rtol=1e-4, atol=1e-5)
    # The number of batches, running mean and variance.
    bn = copy.deepcopy(layers[0])
    norm(x, bn)
    torch.testing.assert_close(bn.state_dict(), after(layers[0], x))


def after(bn: nn.BatchNorm2d, x: Tensor) -> dict[str, Tensor]:
    bn = copy.deepcopy(bn)
    bn(x)
    return bn.state_dict()


@pytest.mark.parametrize("layers", [18, 50])
def test_gradients_of_the_network_are_the_same_bits_as_of_kept_maps(
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
    monkeypatch.setattr(pspnet, "recompute_normalized_maps", contextlib.nullcontext)
    assert all(torch.equal(a, b) for a, b in zip(ours, run(), strict=True))


class Keep(torch.autograd.Function):
    """The sum, which keeps its argument and remembers what it gets back in backward."""

    returned: ClassVar[list[Tensor]] = []

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        Keep.returned.extend(ctx.saved_tensors)
        return grad.expand_as(*ctx.saved_tensors)


def blocks(count: int) -> tuple[list[Tensor], Tensor]:
    """The outputs of blocks that are one normalisation each, and their sum, which keeps them."""
    xs = [torch.randn(2, 5, 9, 7, requires_grad=True) for _ in range(count + 1)]
    total = torch.zeros(())
    maps: list[Tensor] = []
    with recompute_normalized_maps():
        y = norm(xs[0], make_layers()[0])
        for x in xs[1:]:
            bn, relu, _ = make_layers()
            y = norm_relu(x, bn, relu, y)
            maps.append(y.detach())
            total = total + Keep.apply(y)
    del y
    return maps, total


def test_the_maps_are_not_kept() -> None:
    # What was saved may be overwritten: it is not the map itself. The chain of three is the norm
    # and two blocks, so the second block's map is kept, and the fifth's, three blocks later.
    maps, total = blocks(7)
    expected = [map.clone() for map in maps]
    kept = {1, 4}
    for i, map in enumerate(maps):
        if i not in kept:
            map.fill_(float("nan"))
    Keep.returned.clear()
    total.backward()
    # Backward goes from the last to the first.
    assert all(torch.equal(a, b) for a, b in zip(Keep.returned, expected[::-1], strict=True))


def test_a_map_kept_for_the_next_block_is_not_computed_again() -> None:
    maps, total = blocks(7)
    Keep.returned.clear()
    total.backward()
    same = [a.data_ptr() == b.data_ptr() for a, b in zip(Keep.returned[::-1], maps, strict=True)]
    assert same == [False, True, False, False, True, False, False]


def test_what_is_saved_goes_as_backward_goes_on() -> None:
    """The recipes hold the inputs: they must not live as long as the last of them."""
    bn, relu, _ = make_layers()
    first = torch.randn(2, 5, 9, 7, requires_grad=True)
    seen = []
    with recompute_normalized_maps():
        y = norm_relu(first * 1, bn, relu)
        y.register_hook(lambda grad: seen.append(reference()))
        x = y * 1
        reference = weakref.ref(x.untyped_storage())
        out = norm_relu(x, bn, relu).sum()
        del y, x
    assert reference() is not None
    out.backward()
    assert seen == [None]


def test_a_map_modified_in_place_is_kept() -> None:
    bn, _, conv = make_layers()

    def run(within: Callable[[], Any]) -> Tensor:
        x = torch.linspace(-1, 1, 630).view(2, 5, 9, 7).requires_grad_()
        with within():
            y = norm(x, bn)
            y.mul_(2)
            out = conv(y).square().sum()
        return torch.autograd.grad(out, conv.weight)[0]

    assert torch.equal(run(recompute_normalized_maps), run(contextlib.nullcontext))


def test_hooks_around_the_network_get_what_is_saved() -> None:
    layers, x = make_layers(), torch.randn(2, 5, 9, 7, requires_grad=True)
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    counts = []
    for function in (block, recomputed):
        saved.clear()
        with saved_tensors_hooks(pack, lambda tensor: tensor):
            function(x, *layers)
        counts.append(len(saved))
    assert counts[0] == counts[1] > 0


def test_second_derivatives() -> None:
    layers = make_layers()
    x = torch.randn(2, 5, 3, 2, dtype=torch.float64)
    for layer in layers:
        layer.double()

    def second(function: Callable[..., Tensor]) -> Tensor:
        bn, relu, conv = copy.deepcopy(layers)
        leaf = x.clone().requires_grad_()
        loss = function(leaf, bn, relu, conv).pow(3).sum()
        (first,) = torch.autograd.grad(loss, leaf, create_graph=True)
        return torch.autograd.grad(first.square().sum(), leaf)[0]

    torch.testing.assert_close(second(recomputed), second(plainly))


def test_backward_twice() -> None:
    bn, relu, conv = make_layers()
    out = recomputed(torch.randn(2, 5, 9, 7, requires_grad=True), bn, relu, conv).sum()
    first = torch.autograd.grad(out, conv.weight, retain_graph=True)
    assert torch.equal(*first, *torch.autograd.grad(out, conv.weight))


def test_hooks_see_and_change_the_maps() -> None:
    layers, x = make_layers(), torch.randn(2, 5, 9, 7)
    layers[0].register_forward_hook(lambda module, inputs, output: output * 2)
    ours, eager = gradients(recomputed, layers, x), gradients(plainly, layers, x)
    assert all(torch.equal(a, b) for a, b in zip(ours, eager, strict=True))


def test_a_weight_changed_before_backward_is_an_error() -> None:
    bn, relu, conv = make_layers()
    out = recomputed(torch.randn(2, 5, 9, 7, requires_grad=True), bn, relu, conv)
    with torch.no_grad():
        bn.bias.add_(1)
    with pytest.raises(RuntimeError, match=r"^PSPNet: backward: a BatchNorm's weight, bias or inp"):
        out.sum().backward()


def test_frozen_batch_norm() -> None:
    layers, x = make_layers(), torch.randn(2, 5, 9, 7)
    layers[0].eval()
    ours, eager = gradients(recomputed, layers, x), gradients(plainly, layers, x)
    assert all(torch.equal(a, b) for a, b in zip(ours, eager, strict=True))


@pytest.mark.parametrize("training", [True, False])
def test_what_is_saved_is_freed_without_backward(training: bool) -> None:
    model = PSPNet(18, classes=3).train(training)
    images, target = torch.randn(2, 3, 33, 33), torch.zeros(2, 33, 33, dtype=torch.long)
    weights = [weakref.ref(weight) for weight in model.parameters()]
    outputs = model(images, target) if training else model(images)
    del model, outputs
    gc.collect()
    assert not [weight for weight in weights if weight() is not None]

"""In training, whatever watches or changes a BatchNorm or a ReLU sees what it sees in PyTorch."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.nn.utils import parametrize

from pspfast.models.hooks import is_watched
from pspfast.models.recompute import recompute_normalized_maps
from pspfast.models.resnet import Bottleneck

Record = Callable[..., None]

OF_A_MODULE: dict[str, Callable[[nn.Module, Record], Any]] = {
    "forward": lambda m, record: m.register_forward_hook(record),
    "forward with kwargs": lambda m, record: m.register_forward_hook(record, with_kwargs=True),
    "forward, always called": lambda m, record: m.register_forward_hook(record, always_call=True),
    "forward pre": lambda m, record: m.register_forward_pre_hook(record),
    "forward pre with kwargs": lambda m, record: m.register_forward_pre_hook(
        record, with_kwargs=True
    ),
    "full backward": lambda m, record: m.register_full_backward_hook(record),
    "full backward pre": lambda m, record: m.register_full_backward_pre_hook(record),
    "legacy backward": lambda m, record: m.register_backward_hook(record),
}
OF_ALL_MODULES: dict[str, Callable[[Record], Any]] = {
    "forward": hooks.register_module_forward_hook,
    "forward with kwargs": partial(hooks.register_module_forward_hook, with_kwargs=True),
    "forward, always called": partial(hooks.register_module_forward_hook, always_call=True),
    "forward pre": hooks.register_module_forward_pre_hook,
    "full backward": hooks.register_module_full_backward_hook,
    "full backward pre": hooks.register_module_full_backward_pre_hook,
    "legacy backward": hooks.register_module_backward_hook,
}
NAMES = ["bn1", "bn3", "downsample.1", "relu"]


def make_block() -> Bottleneck:
    torch.manual_seed(3)
    block = Bottleneck(6, 4, stride=1, dilation=1)
    # torch forbids writing in place to what has full backward hooks.
    block.relu.inplace = False
    return block


def ours(block: Bottleneck, x: Tensor) -> Tensor:
    with recompute_normalized_maps():
        return block(x)


def plain(block: Bottleneck, x: Tensor) -> Tensor:
    assert block.downsample is not None
    residual = block.downsample[1](block.downsample[0](x))
    out = block.relu(block.bn1(block.conv1(x)))
    out = block.relu(block.bn2(block.conv2(out)))
    return block.relu(block.bn3(block.conv3(out)) + residual)


def assert_equal_to_plain_pytorch(
    change: Callable[[Bottleneck, Record], Any], *, calls: bool = True
) -> None:
    """Outputs, gradients, running statistics, and the calls that a change of a block records."""
    results, recorded = [], []
    for function in (ours, plain):
        names: list[str] = []
        seen: list[Any] = []

        def record(
            module: nn.Module, *args: Any, names: list[str] = names, seen: list[Any] = seen
        ) -> None:
            if isinstance(module, nn.BatchNorm2d | nn.ReLU):
                names.append(type(module).__name__)
                seen.append(detached(args))

        # In float64: gradients of float32 differ by more, and between versions of torch.
        block = make_block().double()
        x = torch.randn(2, 6, 5, 7, dtype=torch.float64, requires_grad=True)
        with ExitStack() as until_the_end:
            handle = change(block, record)
            if handle is not None:
                until_the_end.callback(handle.remove)
            out = function(block, x)
            out.square().sum().backward()
        grads = {name: parameter.grad for name, parameter in block.named_parameters()}
        recorded.append(names)
        results.append([detached(out), x.grad, grads, dict(block.named_buffers()), seen])
    assert recorded[0] == recorded[1]
    assert bool(recorded[1]) == calls
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


def detached(value: Any) -> Any:
    """Copies of the tensors, which may be in tuples together with other arguments."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    return [detached(v) for v in value if isinstance(v, Tensor | tuple)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", OF_A_MODULE)
def test_hooks_of_a_module(kind: str, name: str) -> None:
    assert_equal_to_plain_pytorch(
        lambda block, record: OF_A_MODULE[kind](block.get_submodule(name), record)
    )


@pytest.mark.parametrize("kind", OF_ALL_MODULES)
def test_hooks_of_all_modules(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # torch takes one kind of backward hook, full or legacy, in a process.
    monkeypatch.setattr(hooks, "_global_is_full_backward_hook", None)
    assert_equal_to_plain_pytorch(lambda block, record: OF_ALL_MODULES[kind](record))
    assert not is_watched(nn.ReLU()), "after the hook's removal"


@pytest.mark.parametrize("name", NAMES)
def test_hooks_change_the_gradient(name: str) -> None:
    def change(block: Bottleneck, record: Record) -> Any:
        def double(module: nn.Module, grads: tuple[Tensor, ...]) -> tuple[Tensor]:
            record(module, grads)
            return (2 * grads[0],)

        return block.get_submodule(name).register_full_backward_pre_hook(double)

    assert_equal_to_plain_pytorch(change)


@pytest.mark.parametrize("name", NAMES)
def test_forward_of_the_instance(name: str) -> None:
    def change(block: Bottleneck, record: Record) -> None:
        module = block.get_submodule(name)

        def forward(x: Tensor) -> Tensor:
            record(module, (x,))
            return 2 * type(module).forward(module, x)

        module.forward = forward  # type: ignore[method-assign]

    assert_equal_to_plain_pytorch(change)


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


@pytest.mark.parametrize("name", ["bn1", "bn3", "downsample.1"])
def test_parametrized_weight(name: str) -> None:
    def change(block: Bottleneck, record: Record) -> None:
        parametrize.register_parametrization(block.get_submodule(name), "weight", Doubled())

    assert_equal_to_plain_pytorch(change, calls=False)


class DoublingBatchNorm2d(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class LeakyReLU(nn.ReLU):
    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.leaky_relu(input, 0.1)


def test_subclasses() -> None:
    def change(block: Bottleneck, record: Record) -> None:
        block.bn1, block.bn3 = DoublingBatchNorm2d(4).double(), DoublingBatchNorm2d(16).double()
        block.relu = LeakyReLU()

    assert_equal_to_plain_pytorch(change, calls=False)


def test_a_kept_output_of_batch_norm_is_not_added_to() -> None:
    block, kept = make_block(), []
    block.bn3.register_forward_hook(lambda module, args, out: kept.extend([out, out.clone()]))
    ours(block, torch.randn(2, 6, 5, 7))
    assert torch.equal(*kept)

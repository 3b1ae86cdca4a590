"""Convolutions of inference that write their results into the residual's memory, and those that
must not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from randomised import randomised
from rewriting import relative, rewritten, same
from torch import Tensor, fx, nn
from torch._dynamo.backends.registry import lookup_backend
from torch.utils.flop_counter import FlopCounterMode
from torch_release import TORCH

from pspfast.rewrite.onednn import CONV2D, CONV2D_


class Block(nn.Module):
    """A bottleneck's last convolution with what follows it; ``shortcut`` makes the residual."""

    def __init__(self, shortcut: Callable[[Tensor], Any] | None = None, groups: int = 1) -> None:
        super().__init__()
        self.shortcut = shortcut or nn.Conv2d(8, 8, 1)
        self.conv = nn.Conv2d(8, 8, 1, groups=groups)
        self.norm = nn.BatchNorm2d(8)

    def last(self, x: Tensor, residual: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)) + residual)

    def forward(self, x: Tensor) -> Any:
        return self.last(x, self.shortcut(x))


def channels_last(size: tuple[int, int] = (7, 9)) -> Tensor:
    return torch.randn(2, 8, *size).contiguous(memory_format=torch.channels_last)


def convolutions(model: nn.Module, *inputs: Tensor, rest: Any = None, **options: Any) -> list[str]:
    """Which form each has in the rewritten graph, after comparing results of two runs, and inputs
    and weights before and after."""
    forms: list[str] = []

    def keep(module: fx.GraphModule, example_inputs: Any) -> Callable[..., Any]:
        names = {CONV2D: "new", CONV2D_: "in place"}
        forms.extend(names[n.target] for n in module.graph.nodes if n.target in names)
        if rest is None:
            return module.forward
        return lookup_backend(rest)(module, example_inputs)

    model = randomised(model).eval()
    compiled, _ = rewritten(model, keep, **options)
    tensors = [*inputs, *model.state_dict().values()]
    before = [t.clone() for t in tensors]
    with torch.no_grad():
        for _ in range(2):
            same(compiled(*inputs), model(*inputs), 1e-5)
    assert all(map(torch.equal, tensors, before))
    return forms


@pytest.mark.parametrize("rest", [None, "inductor"])
@pytest.mark.parametrize("options", [{}, {"groups": 2}], ids=str)
def test_in_place(options: dict[str, Any], rest: Any) -> None:
    assert convolutions(Block(**options), channels_last(), rest=rest) == ["in place"]


@pytest.mark.parametrize("rest", [None, "inductor"])
def test_blocks_in_a_row(rest: Any) -> None:
    """Each one's residual is the result of that before; the first one's is an input."""

    class Residual(Block):
        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.sin(self.shortcut(x)), x)

    model = nn.Sequential(Residual(), Residual(), Residual())
    forms = convolutions(model, channels_last(), rest=rest)
    assert forms == ["new", "in place", "in place"]


@pytest.mark.parametrize("rest", [None, "inductor"])
def test_symbolic_sizes(rest: Any) -> None:
    forms = convolutions(Block(), channels_last(), rest=rest, dynamic=True)
    # torch 2.11 does not know the memory format of results of symbolic sizes. Others may make two
    # graphs: Dynamo begins anew for numbers that Inductor makes tensors of.
    if TORCH > (2, 11):
        assert set(forms) == {"in place"}


def test_whole_network() -> None:
    """torchvision's bottlenecks: sixteen residuals, of which the graph made all."""
    models = pytest.importorskip("torchvision.models")
    x = torch.randn(1, 3, 65, 65).contiguous(memory_format=torch.channels_last)
    model = models.resnet50().to(memory_format=torch.channels_last)
    assert convolutions(model, x).count("in place") == 16


class ReadLater(Block):
    def forward(self, x: Tensor) -> Any:
        residual = self.shortcut(x)
        return self.last(x, residual), residual.mean()


class ReadLaterByAConvolution(Block):
    def forward(self, x: Tensor) -> Any:
        residual = self.shortcut(x)
        return self.last(x, residual), self.shortcut(residual)


class Returned(Block):
    def forward(self, x: Tensor) -> Any:
        residual = self.shortcut(x)
        return self.last(x, residual), residual


class ViewRead(Block):
    def forward(self, x: Tensor) -> Any:
        residual = self.shortcut(x)
        part = residual[:, :3]
        return self.last(x, residual), part + 1


class PartOfAnother(Block):
    def forward(self, x: Tensor) -> Any:
        whole = self.shortcut(torch.cat([x, x]))
        return self.last(x, whole[: x.shape[0]]), whole.mean()


class ItsOwnInput(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = self.shortcut(x)
        return self.last(x, x)


class ItsInputInPart(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = self.shortcut(x)
        return self.last(x[:], x)


class CopiedOrNot(Block):
    """Whether it is, is known when the graph runs."""

    def forward(self, x: Tensor) -> Any:
        residual = self.shortcut(x)
        copy = residual.contiguous(memory_format=torch.channels_last)
        return self.last(x, copy), residual.mean()


class Constant(Block):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("position", channels_last())

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x, self.position)


@pytest.mark.parametrize("rest", [None, "inductor"])
@pytest.mark.parametrize(
    "model",
    [
        Block(lambda x: x),
        Block(torch.sin),
        Constant(),
        ReadLater(),
        ReadLaterByAConvolution(),
        Returned(),
        ViewRead(),
        PartOfAnother(),
        ItsOwnInput(),
        ItsInputInPart(),
        CopiedOrNot(),
    ],
    ids=lambda model: type(model).__name__,
)
def test_memory_that_is_not_its_own_stays(model: nn.Module, rest: Any) -> None:
    assert convolutions(model, channels_last(), rest=rest) == ["new"]


@pytest.mark.parametrize("rest", [None, "inductor"])
@pytest.mark.parametrize(
    "view",
    [
        lambda y: y[:, :4],
        lambda y: y.detach(),
        lambda y: y.permute(0, 2, 3, 1),
        lambda y: y.flatten(2),
        lambda y: y.chunk(2, 1)[1],
        lambda y: y.contiguous(memory_format=torch.channels_last),
    ],
)
def test_a_view_of_a_result_in_place(view: Callable[[Tensor], Tensor], rest: Any) -> None:
    """The next block's residual is that result, and has the first residual's memory."""

    class Two(Block):
        def forward(self, x: Tensor) -> Any:
            first = self.last(x, self.shortcut(x))
            kept = view(first)
            return self.last(x, first), kept.mean((0, 1))

    assert convolutions(Two(), channels_last(), rest=rest) == ["in place", "new"]


def test_another_memory_format_stays() -> None:
    conv = nn.Conv2d(8, 8, 1)
    model = Block(lambda x: conv(x.contiguous()))
    assert convolutions(model, channels_last()) == ["new"]


def test_without_a_residual() -> None:
    class Plain(Block):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.norm(self.conv(x)))

    assert convolutions(Plain(), channels_last()) == ["new"]


def test_contracts_of_the_operators() -> None:
    x, residual = channels_last(), channels_last()
    weight, bias = torch.randn(8, 8, 3, 3), torch.randn(8)
    sizes = ([1, 1], [1, 1], [1, 1], 1)
    torch.library.opcheck(CONV2D, (x, weight, bias, *sizes, residual, True))
    torch.library.opcheck(CONV2D_, (residual, x, weight, bias, *sizes, True))


def test_flops_are_counted() -> None:
    model, x = randomised(Block()).eval(), channels_last()
    compiled, _ = rewritten(model)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        compiled(x)
    # Two convolutions of eight channels.
    assert counter.get_total_flops() == 2 * 2 * 8 * x.numel()


def test_sizes_that_change() -> None:
    """With a map of one pixel, whose memory format is any."""

    class Padded(Block):
        def forward(self, x: Tensor) -> Any:
            residual = F.pad(self.norm(self.shortcut(x)), (1, 1, 1, 1))
            copy = residual.contiguous(memory_format=torch.channels_last)
            return self.last(F.pad(x, (1, 1, 1, 1)), copy), residual

    model = randomised(Padded()).eval().to(memory_format=torch.channels_last)
    compiled, _ = rewritten(model)
    for size in ((12, 12), (17, 9), (5, 31), (1, 1)):
        x = channels_last(size)
        with torch.no_grad():
            for ours, eager in zip(compiled(x), model(x), strict=True):
                assert relative(ours, eager) < 1e-5


def test_tensors_of_inference_mode() -> None:
    model, x = randomised(Block()).eval(), channels_last()
    compiled, _ = rewritten(model)
    with torch.inference_mode():
        same(compiled(x), model(x), 1e-5)

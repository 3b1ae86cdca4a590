"""Which implementation a convolution on a GPU takes, eager and compiled: here on the CPU, where the
Triton kernels are plain PyTorch that notes its calls."""

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import pspfast
from pspfast.backends import load_triton_ops
from pspfast.ops import dilated_conv2d
from pspfast.ops.common import fastest_conv2d as choice

# The package has the function under this name.
module = sys.modules["pspfast.ops.dilated_conv2d"]
PARTS = ("dilated_conv2d", "dilated_conv2d_grad_input", "dilated_conv2d_grad_weight")


class Choices:
    """In place of ``fastest``: takes one name always, and notes what it was asked."""

    def __init__(self) -> None:
        self.takes = "triton"
        self.keys: list[Any] = []
        self.scratch: list[int] = []
        self.candidates: list[dict[str, Callable[[], object]]] = []
        self.launched: list[str] = []

    def __call__(self, key: Any, candidates: dict[str, Any], scratch_bytes: int) -> str:
        assert next(iter(candidates)) == "triton"
        self.keys.append(key)
        self.scratch.append(scratch_bytes)
        self.candidates.append(candidates)
        return self.takes


@pytest.fixture
def choices(monkeypatch: pytest.MonkeyPatch) -> Choices:
    load_triton_ops()
    from pspfast.kernels import dilated_conv2d as kernels

    choices = Choices()
    plain = (module.dilated_conv2d_reference, choice.library_grad_input, choice.library_grad_weight)
    for part, function in zip(PARTS, plain, strict=True):

        def noted(
            *arguments: Any, part: str = part, function: Any = function, boxes: bool | None = None
        ) -> Tensor:
            choices.launched.append(f"{part} {boxes}")
            return function(*arguments)

        monkeypatch.setattr(kernels, part, noted)
    monkeypatch.setattr(choice, "fastest", choices)
    monkeypatch.setattr(pspfast.backends, "select", lambda *_, **__: "triton")
    return choices


def a_problem(batch: int = 2, channels: int = 3) -> list[Tensor]:
    """x, weight, bias and residual."""
    torch.manual_seed(0)
    shapes = [(batch, channels, 6, 5), (4, channels, 3, 3), (4,), (batch, 4, 6, 5)]
    tensors = [torch.randn(shape).requires_grad_() for shape in shapes]
    tensors[0] = tensors[0].detach().to(memory_format=torch.channels_last).requires_grad_()
    return tensors


def run(function: Callable[..., Tensor], tensors: list[Tensor]) -> list[Tensor]:
    """The result and all gradients."""
    out = function(*tensors)
    return [out.detach(), *torch.autograd.grad(out, tensors, torch.ones_like(out))]


def convolve(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    return dilated_conv2d(x, weight, bias, dilation=2, residual=residual, relu=True)


def oracle(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    out = torch.nn.functional.conv2d(x, weight, bias, padding=2, dilation=2)
    return (out + residual).relu()


@pytest.mark.parametrize("dynamic", [None, False, True], ids=["eager", "static", "dynamic"])
def test_each_part_runs_what_is_faster(choices: Choices, dynamic: bool | None) -> None:
    """Compiled too it is decided when it runs: nothing is compiled again for another choice."""
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    torch._dynamo.reset()
    function = convolve
    if dynamic is not None:
        function = torch.compile(convolve, backend=backend, fullgraph=True, dynamic=dynamic)
    tensors = a_problem()
    expected = run(oracle, [t.detach().double().requires_grad_() for t in tensors])
    for takes in ("library", "triton", "library"):
        choices.takes = takes
        choices.launched.clear()
        choices.keys.clear()
        for got, exact in zip(run(function, tensors), expected, strict=True):
            torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=1e-5)
        assert [key[0] for key in choices.keys] == list(PARTS)
        launched = [f"{part} None" for part in PARTS] if takes == "triton" else []
        assert choices.launched == launched
    assert len(graphs) == (dynamic is not None)


def test_inductor_keeps_the_choice(choices: Choices) -> None:
    torch._dynamo.reset()
    tensors = [t.detach() for t in a_problem()]
    compiled = torch.compile(convolve, fullgraph=True)
    for takes in ("library", "triton"):
        choices.takes = takes
        torch.testing.assert_close(compiled(*tensors), oracle(*tensors))
    assert choices.launched == ["dilated_conv2d None"]


def test_a_backend_that_is_asked_for_is_taken(choices: Choices) -> None:
    tensors = a_problem()
    with pspfast.backend("triton"), FakeTensorMode(allow_non_fake_inputs=True):
        assert convolve(*tensors).shape == (2, 4, 6, 5)
    assert choices.launched and not choices.keys


def test_nothing_is_timed_without_data(choices: Choices) -> None:
    assert convolve(*a_problem(batch=0)).shape == (0, 4, 6, 5)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = mode.from_tensor(a_problem()[0])
        assert dilated_conv2d(fake, *a_problem()[1:2]).shape == (2, 4, 6, 5)
    assert not choices.keys


def test_descriptors_and_pointers_are_both_timed(
    choices: Choices, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pspfast.kernels import dilated_conv2d as kernels

    monkeypatch.setattr(kernels, "takes_boxes", lambda x, out_channels: True)
    choices.takes = "other"
    for by_rule in (False, True):
        monkeypatch.setattr(kernels, "boxes_by_rule", lambda x, out, rule=by_rule: rule)
        x, weight, *_ = (t.detach() for t in a_problem())
        grad = torch.randn(2, 4, 6, 5)
        torch.ops.pspfast.dilated_conv2d_fastest(x, weight, None, 2, None, False)
        torch.ops.pspfast.dilated_conv2d_grad_input_fastest(grad, weight, 2)
        assert choices.launched == [f"{part} {not by_rule}" for part in PARTS[:2]]
        choices.launched.clear()
    assert list(choices.candidates[0]) == ["triton", "other", "library"]


def test_sizes_of_a_class_are_timed_once(choices: Choices) -> None:
    ran = []

    def reference(x: Tensor, *_: Any) -> Tensor:
        ran.append(x.shape)
        return x

    weight = torch.randn(2, 2, 3, 3)
    for shape in [(16, 2, 60, 60), (13, 2, 61, 59), (16, 2, 90, 90), (1, 2, 200, 200)]:
        x = torch.randn(shape)
        arguments = {"x": x, "weight": weight, "dilation": 1}
        elements = lambda n, x=x: n * x[0].numel()  # noqa: E731
        choice.fastest_conv2d(x, "op", arguments, {"triton": reference}, elements)
        choices.candidates[-1]["triton"]()
    keys = choices.keys
    assert keys[0] == keys[1] and len(set(keys)) == 2 + (keys[3] != keys[0])
    # A part of the batch, of 8192 pixels at most, or an image; then all of it.
    assert [shape[0] for shape in ran[1::2]] == [2, 2, 1, 1]
    assert [shape[0] for shape in ran[::2]] == [16, 13, 16, 1]
    # The result, twice.
    assert choices.scratch[0] == 2 * 4 * 2 * 60 * 60 * 2


def test_operators_are_as_torch_wants_them(choices: Choices) -> None:
    ops, d = torch.ops.pspfast, 2
    x, weight, bias, residual = a_problem()
    grad = torch.randn(2, 4, 6, 5, requires_grad=True)
    torch.library.opcheck(ops.dilated_conv2d_fastest, (x, weight, bias, d, residual, True))
    torch.library.opcheck(ops.dilated_conv2d_grad_input_fastest, (grad, weight, d))
    for channels_last in (False, True):
        arguments = (grad, x, d, channels_last)
        torch.library.opcheck(ops.dilated_conv2d_grad_weight_fastest, arguments)

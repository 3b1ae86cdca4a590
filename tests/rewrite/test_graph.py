"""Writing in place, and tensors with several names."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from rewriting import check, reasons, rewritten, rules
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from pspfast.rewrite.facts import hint


class Upsampled(nn.Module):
    """A convolution of an upsampled map, to which a rule applies, and something around it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 4, 3, padding=1)

    def head(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="bilinear"))


def map_() -> Tensor:
    return torch.randn(2, 6, 7, 9, dtype=torch.float64)


def test_in_place_activations_are_seen_through() -> None:
    class Model(Upsampled):
        def forward(self, x: Tensor) -> Tensor:
            y = F.relu(F.interpolate(x, scale_factor=2.0, mode="bilinear") * 2, inplace=True)
            out = self.head(F.relu(x * 2, inplace=True))
            out += 1
            return F.relu(out, inplace=True) + y.mean()

    assert rules(check(Model(), map_())) == ["upsample_concat_conv2d"]


def test_in_place_operators_stay_in_place() -> None:
    operators = []

    def keep(module: torch.fx.GraphModule, inputs: Any) -> Any:
        from pspfast.rewrite.backend import rewrite_and_compile
        from pspfast.rewrite.report import Report

        compiled = rewrite_and_compile(module, inputs, "eager", Report())
        operators.extend(str(n.target) for n in compiled.__self__.graph.nodes)
        return compiled

    def block(x: Tensor) -> Tensor:
        y = torch.sin(x)
        z = F.relu(y, inplace=True)
        z += x
        return F.relu(z, inplace=True)

    torch.compiler.reset()
    x = map_()
    assert torch.equal(torch.compile(block, backend=keep)(x), block(x))
    assert operators.count("aten.relu_.default") == 2
    assert operators.count("aten.add_.Tensor") == 1


def test_an_input_written_to_is_written_to() -> None:
    class Model(Upsampled):
        def forward(self, x: Tensor) -> Tensor:
            x.relu_()
            return self.head(x)

    model = Model().double()
    compiled, report = rewritten(model)
    x = map_()
    other = x.clone()
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(other))
    assert torch.equal(x, other)
    assert rules(report) == ["upsample_concat_conv2d"]


def test_a_view_sees_what_is_written_to_its_base() -> None:
    class Model(Upsampled):
        def forward(self, x: Tensor) -> Any:
            y = x * 2
            view = y[:, 2:]
            y.relu_()
            return self.head(y), view

    check(Model(), map_())


def test_a_base_sees_what_is_written_to_its_view() -> None:
    class Model(Upsampled):
        def forward(self, x: Tensor) -> Any:
            y = x * 2
            y[:, 2:].mul_(3)
            flat = y.flatten(2)
            flat.add_(1)
            return self.head(y)

    check(Model(), map_())


def test_a_detached_tensor_that_is_written_to_keeps_gradients_apart() -> None:
    class Model(Upsampled):
        def forward(self, x: Tensor) -> Any:
            y = x * 2
            y.detach().mul_(3)
            return self.head(y)

    check(Model(), map_())


def test_writing_without_gradients_keeps_the_history() -> None:
    class Model(Upsampled):
        def forward(self, x: Tensor) -> Any:
            y = x * 2
            with torch.no_grad():
                y.mul_(3)
            return self.head(y)

    check(Model(), map_())


def test_a_result_written_to_afterwards() -> None:
    class Model(Upsampled):
        def forward(self, x: Tensor) -> Any:
            out = self.head(x)
            view = out.view(2, -1)
            out.mul_(2)
            view[:, :5].mul_(3)
            return out, view

    assert rules(check(Model(), map_())) == ["upsample_concat_conv2d"]


def test_writing_in_another_dtype_keeps_the_dtype() -> None:
    class Model(Upsampled):
        def forward(self, x: Tensor) -> Any:
            count = torch.ones(2, dtype=torch.float32)
            count += torch.tensor([1.5, 2.5], dtype=torch.float64)
            return self.head(x), count

    check(Model(), map_())


def test_what_is_returned_as_its_own_tensor_stays_that() -> None:
    class Model(Upsampled):
        def forward(self, x: Tensor) -> Any:
            y = x * 2
            return y, F.interpolate(y, y.shape[2:], mode="bilinear")

    report = check(Model(), map_())
    assert not rules(report)
    assert "its tensor is returned" in reasons(report)


def test_sizes_that_depend_on_data_count_as_small() -> None:
    size = ShapeEnv().create_unbacked_symint()
    assert hint(size) == hint(2 * size) == 64
    assert hint(7) == 7

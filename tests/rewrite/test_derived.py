"""What is computed from weights follows them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from rewriting import relative, rewritten, rules
from torch import Tensor, nn


class Block(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU())


def optimizer_step(model: nn.Module) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    model(torch.randn(1, 32, 9, 9)).square().sum().backward()
    optimizer.step()


def load(model: nn.Module) -> None:
    model.load_state_dict({k: torch.rand_like(v.float()) for k, v in model.state_dict().items()})


def assign(model: nn.Module) -> None:
    state = {k: torch.rand_like(v.float()) for k, v in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def data(model: nn.Module) -> None:
    model[0].weight.data = torch.randn(32, 32, 3, 3)


def statistics(model: nn.Module) -> None:
    model.train()(torch.randn(4, 32, 9, 9))
    model.eval()


def freeze(model: nn.Module) -> None:
    model.requires_grad_(False)
    with torch.no_grad():
        model[0].weight.mul_(-1)


def replace(model: nn.Module) -> None:
    model[1].weight = nn.Parameter(torch.randn(32))


@pytest.mark.parametrize(
    "change", [optimizer_step, load, assign, data, statistics, freeze, replace]
)
def test_new_values_are_seen_at_once(change: Callable[[nn.Module], Any]) -> None:
    model = Block().eval()
    compiled, report = rewritten(model)
    x = torch.randn(1, 32, 24, 24)
    for _ in range(2):
        with torch.no_grad():
            before = model(x)
            for _ in range(2):
                assert relative(compiled(x), before) < 1e-5
        change(model)
        with torch.no_grad():
            after = model(x)
            assert relative(after, before) > 1e-3
            assert relative(compiled(x), after) < 1e-5
    assert "folded_conv2d" in rules(report)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_another_dtype(dtype: torch.dtype) -> None:
    model = Block().eval()
    compiled, _ = rewritten(model)
    x = torch.randn(1, 32, 24, 24)
    with torch.no_grad():
        compiled(x)
        model.to(dtype)
        ours, eager = compiled(x.to(dtype)), model(x.to(dtype))
    assert ours.dtype == dtype
    assert relative(ours, eager) < {torch.float64: 1e-10, torch.bfloat16: 2e-2}[dtype]


def test_computed_once_while_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    from pspfast.rewrite import derived

    calls = []
    compute = derived.Derived._compute

    def counting(self: Any, sources: Any) -> list[Tensor]:
        calls.append(len(sources))
        return compute(self, sources)

    monkeypatch.setattr(derived.Derived, "_compute", counting)
    model = Block().eval()
    compiled, _ = rewritten(model)
    with torch.no_grad():
        for _ in range(3):
            compiled(torch.randn(1, 32, 24, 24))
        assert len(calls) == 1
        model[1].running_var.mul_(2)
        compiled(torch.randn(1, 32, 24, 24))
        assert len(calls) == 2


def test_models_made_in_inference_mode() -> None:
    with torch.inference_mode():
        model = Block().eval()
        compiled, _ = rewritten(model)
        x = torch.randn(1, 32, 24, 24)
        for _ in range(2):
            assert relative(compiled(x), model(x)) < 1e-5
            model[0].weight.mul_(-2)

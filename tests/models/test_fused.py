from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils._python_dispatch import TorchDispatchMode

from pspfast import PSPNet, optimize_for_inference
from pspfast.models import fused

ON_THE_CPU = fused._onednn_takes(torch.float32)


def make_optimized(layers: int = 50) -> Any:
    # Its first block has no downsample with 18 layers and this stem.
    return optimize_for_inference(PSPNet(layers, classes=4, stem="7x7"))


class Kept:
    """What modules were given and returned, and copies made at that time."""

    def __init__(self) -> None:
        self.tensors: list[tuple[Tensor, Tensor]] = []

    def keep(self, *values: Any) -> None:
        for value in values:
            if isinstance(value, Tensor):
                self.tensors.append((value, value.clone()))
            elif isinstance(value, tuple):
                self.keep(*value)

    def assert_unchanged(self) -> None:
        assert self.tensors
        assert all(torch.equal(tensor, copied) for tensor, copied in self.tensors)


@pytest.mark.parametrize("layers", [18, 50])
@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook"])
def test_what_a_hook_kept_stays_as_it_is(kind: str, layers: int) -> None:
    optimized, x = make_optimized(layers), torch.randn(1, 3, 33, 41)
    expected = optimized(x)
    for name, module in optimized.named_modules():
        kept = Kept()
        handle = getattr(module, kind)(lambda module, *values, kept=kept: kept.keep(*values))
        assert torch.equal(optimized(x), expected), name
        handle.remove()
        if not isinstance(module, nn.ModuleList):
            kept.assert_unchanged()


def test_what_a_hook_of_all_modules_kept_stays_as_it_is() -> None:
    optimized, x, kept = make_optimized(), torch.randn(1, 3, 33, 41), Kept()
    expected = optimized(x)
    handle = register_module_forward_hook(lambda module, *values: kept.keep(*values))
    try:
        assert torch.equal(optimized(x), expected)
    finally:
        handle.remove()
    kept.assert_unchanged()


@pytest.mark.parametrize("layers", [18, 50])
def test_the_input_of_a_stage_or_block_called_by_hand_stays_as_it_is(layers: int) -> None:
    optimized, kept = make_optimized(layers), Kept()
    x = optimized.layer0(torch.randn(1, 3, 33, 41))
    for stage in (optimized.layer1, optimized.layer2, optimized.layer3, optimized.layer4):
        kept.keep(x)
        out = x
        for block in stage:
            kept.keep(out)
            out = block(out)
        x = stage(x)
        assert torch.equal(out, x)
    kept.assert_unchanged()


class Copies(TorchDispatchMode):
    """Counts the copies that are made of maps."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten.clone.default
        return func(*args, **(kwargs or {}))


@pytest.mark.skipif(not ON_THE_CPU, reason="torch has no oneDNN here")
def test_without_hooks_no_residual_is_copied() -> None:
    optimized, x = make_optimized(), torch.randn(1, 3, 33, 41)
    counts = []
    for _ in range(2):
        with Copies() as copies:
            optimized(x)
        counts.append(copies.count)
        optimized.layer3[0].register_forward_hook(lambda *args: None)
    # One for each of the stage's six blocks.
    assert counts[1] == counts[0] + 6


class OnAGpu(Tensor):
    """Says that it is on one; its memory is the CPU's."""

    device = property(lambda self: torch.device("cuda"))  # type: ignore[assignment]


def calls_cudnn(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether a fused convolution does, of which the result is right if it does not."""
    calls: list[Tensor] = []
    for name in ("cudnn_convolution_relu", "cudnn_convolution_add_relu"):
        monkeypatch.setattr(torch, name, lambda x, *args: calls.append(x) or x)
    conv = nn.Conv2d(8, 8, 1).to(dtype)
    layer = fused.FusedConv2d(conv, conv.weight.detach(), conv.bias.detach(), True, dtype)
    x, residual = torch.randn(2, 1, 8, 5, 5, dtype=dtype).unbind()
    on_a_gpu = x.as_subclass(OnAGpu), residual.as_subclass(OnAGpu)
    out, with_residual = layer(on_a_gpu[0]), layer(*on_a_gpu)
    if not calls:
        torch.testing.assert_close(out.as_subclass(Tensor), conv(x).relu())
        torch.testing.assert_close(with_residual.as_subclass(Tensor), (conv(x) + residual).relu())
    assert len(calls) in (0, 2)
    return bool(calls)


@pytest.fixture
def _cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cudnn, "enabled", True)


@pytest.mark.usefixtures("_cudnn")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_cudnn_on_a_gpu(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    assert calls_cudnn(dtype, monkeypatch)


ABSENCES: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "ROCm": lambda patch: patch.setattr(torch.version, "hip", "7.0"),
    "missing": lambda patch: patch.setattr(torch.backends.cudnn, "is_available", lambda: False),
    "disabled": lambda patch: patch.setattr(torch.backends.cudnn, "enabled", False),
}


@pytest.mark.usefixtures("_cudnn")
@pytest.mark.parametrize("absence", ABSENCES)
def test_no_cudnn_on_a_gpu(absence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ABSENCES[absence](monkeypatch)
    assert not calls_cudnn(torch.float32, monkeypatch)


@pytest.mark.usefixtures("_cudnn")
def test_cudnn_has_no_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not calls_cudnn(torch.float64, monkeypatch)

"""When cuDNN is timed against the Triton kernel, and on what: here on the CPU."""

import sys
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import pspfast
from pspfast.backends import load_triton_ops

# The package has the function under this name.
module = sys.modules["pspfast.ops.dilated_conv2d"]


@pytest.mark.parametrize("needs_grad", [False, True])
def test_cudnn_is_timed_against_triton(monkeypatch: pytest.MonkeyPatch, needs_grad: bool) -> None:
    """Forward alone, or with the gradients; here what is timed runs on the CPU."""
    load_triton_ops()
    keys, x, weight = [], torch.randn(1, 2, 4, 3), torch.randn(3, 2, 3, 3)
    weight.requires_grad_(needs_grad)

    def fastest(key: Any, candidates: dict[str, Any], scratch_bytes: int) -> str:
        assert list(candidates) == ["triton", "library"]
        candidates["library"]()
        keys.append(key)
        return "library"

    def library_is_faster(x: torch.Tensor, dilation: int = 1) -> bool:
        return module._library_is_faster(module._Arguments(x, weight, None, dilation, None, False))

    monkeypatch.setattr(module, "fastest", fastest)
    for dilation in (1, 1, 2):
        assert library_is_faster(x, dilation)
    assert keys[0] == keys[1] != keys[2]
    assert weight.grad is None

    with torch.no_grad():
        assert library_is_faster(x)
    assert (keys[3] == keys[0]) is not needs_grad
    assert not library_is_faster(x[:0])
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert not library_is_faster(mode.from_tensor(x))
    with pspfast.backend("reference"):
        assert not library_is_faster(x)
    assert len(keys) == 4


def test_sizes_of_a_class_are_timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    load_triton_ops()
    keys, scratch, ran = [], [], []

    def fastest(key: Any, candidates: dict[str, Any], scratch_bytes: int) -> str:
        candidates["library"]()
        keys.append(key)
        scratch.append(scratch_bytes)
        return "triton"

    def reference(x: torch.Tensor, *_: Any) -> torch.Tensor:
        ran.append(x.shape)
        return x

    monkeypatch.setattr(module, "fastest", fastest)
    monkeypatch.setattr(module, "dilated_conv2d_reference", reference)
    weight = torch.randn(2, 2, 3, 3)
    shapes = [(16, 2, 60, 60), (13, 2, 61, 59), (16, 2, 90, 90), (1, 2, 200, 200)]
    for shape in shapes:
        arguments = module._Arguments(torch.randn(shape), weight, None, 1, None, False)
        assert not module._library_is_faster(arguments)
    assert keys[0] == keys[1] and len(set(keys)) == 2 + (keys[3] != keys[0])
    # A part of the batch, of 8192 pixels at most, or an image.
    assert [shape[0] for shape in ran] == [2, 2, 1, 1]
    # The result, twice.
    assert scratch[0] == 2 * 4 * 2 * 60 * 60 * 2

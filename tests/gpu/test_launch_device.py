"""Triton launches on the current device: every launcher makes its tensors' the current one."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from pspfast.kernels import launch
from tools.machine_code import LAUNCHERS

# What a module's public functions are beside launchers: rules, which say yes or no.
PUBLIC = [
    function
    for module in LAUNCHERS
    for name, function in vars(module).items()
    if inspect.isfunction(function) and function.__module__ == module.__name__ and name[0] != "_"
    if inspect.signature(function).return_annotation is not bool
]


def test_there_are_launchers() -> None:
    assert len(PUBLIC) == 22


@pytest.mark.parametrize("function", PUBLIC, ids=lambda function: function.__name__)
def test_every_launcher_is_decorated(function: Any) -> None:
    decorated = launch.launches_on_tensor_device(lambda first: first)
    assert function.__code__ is decorated.__code__


def test_launches_launches_on_tensor_device(monkeypatch: pytest.MonkeyPatch) -> None:
    current: list[Tensor] = []

    @contextmanager
    def device_of(tensor: Tensor) -> Iterator[None]:
        current.append(tensor)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_of", device_of)

    @launch.launches_on_tensor_device
    def launcher(first: Tensor, second: Tensor, *, factor: int) -> list[Tensor]:
        return [first, second * factor, *current]

    first, second = torch.ones(2), torch.ones(3)
    got = launcher(first, second, factor=2)
    assert got[0] is first and got[2] is first
    assert torch.equal(got[1], 2 * second)
    assert not current

"""What makes a host wait for a device, found on the CPU, where nothing waits."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# Operators whose result, or its shape, the host has to know; and what makes a tensor of numbers in
# the host's memory, from where a device waits for a copy.
_READS = {
    "lift_fresh",
    "_local_scalar_dense",
    "bincount",
    "equal",
    "is_nonzero",
    "item",
    "masked_select",
    "nonzero",
    "nonzero_numpy",
    "repeat_interleave",
    "unique_consecutive",
    "_unique2",
}
# Methods that copy to the host, which on the CPU no operator does.
_COPIES = {"__bool__", "__complex__", "__contains__", "__float__", "__index__", "__int__"}
_COPIES |= {"__array__", "cpu", "item", "numpy", "tolist"}
# Of these modules: they look at values on the CPU only.
_CPU_ONLY = "pspfast.ops.upsample_cross_entropy"


class _Reads(TorchDispatchMode):
    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found, self.operators = found, 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.operators += 1
        name = func._overloadpacket.__name__
        indices = [i for i in args[1] if i is not None] if name.startswith("index") else []
        if name in _READS or any(i.dtype in (torch.bool, torch.uint8) for i in indices):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


class _Copies(TorchFunctionMode):
    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in _COPIES:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@contextmanager
def waits() -> Iterator[_Reads]:
    """Within, ``found`` gets the names of operators and methods that would make the host wait, were
    every tensor on a device. What PSPNet does with labels on the CPU alone is left out."""
    found: list[str] = []
    loss = sys.modules[_CPU_ONLY]
    with (
        mock.patch("pspfast.models.pspnet.check_target", lambda *_: None),
        mock.patch.object(loss, "_check_labels", lambda *_: None),
        _Copies(found),
        _Reads(found) as reads,
    ):
        yield reads


def watched(step: Callable[..., Tensor], found: list[list[str]]) -> Callable[..., Tensor]:
    """The step, which adds what it waited for to ``found``, if it did anything at all."""

    @functools.wraps(step)
    def run(*args: Any) -> Tensor:
        with waits() as reads:
            out = step(*args)
        assert reads.operators > 100
        found.append(reads.found)
        return out

    return run

"""Pickled weights without the code that a pickle may ask for.

A pickle names classes and functions, and unpickling imports and calls them. Here the few that make
tensors are known; every other name becomes a class that does nothing and holds nothing. So files of
a training run, which hold objects besides the weights, can be read, and hostile ones are harmless.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from types import ModuleType
from typing import Any

import torch
from torch import Tensor


class Inert:
    """Stands for an object whose class is not among those that make tensors."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        """A pickled list of another class is filled by this."""

    def extend(self, items: Any) -> None:
        """Likewise."""

    def add(self, item: Any) -> None:
        """Likewise a set."""

    def __setitem__(self, key: Any, value: Any) -> None:
        """Likewise a dict."""


def _tensor(
    storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> Tensor:
    """Without what may follow: hooks, and whether it requires a gradient."""
    return torch._utils._rebuild_tensor(storage, offset, size, stride)


def _parameter(data: Tensor, *_: Any) -> Tensor:
    return data


_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
}


class SafeUnpickler(pickle.Unpickler):
    """Imports nothing, and calls nothing but what is known here."""

    def find_class(self, module: str, name: str) -> Any:
        known = _KNOWN.get((module, name))
        if known is None and module == "torch":
            # Storages are named in the type of their elements; torch.load has found most of them.
            found = getattr(torch, name, None) if name.isidentifier() else None
            if isinstance(found, torch.dtype) or name.endswith("Storage"):
                return found
        # A class of its own for each, since a pickle may ask for a class to be made of it.
        return known or type(str(name).rpartition(".")[2] or "Inert", (Inert,), {})


def _load(file: Any, **arguments: Any) -> Any:
    return SafeUnpickler(file, **arguments).load()


#: For ``torch.load``'s ``pickle_module``.
SAFE_PICKLE: Any = ModuleType("safe_pickle")
SAFE_PICKLE.Unpickler, SAFE_PICKLE.load = SafeUnpickler, _load

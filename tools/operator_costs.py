"""Counts what operators cost a device, as they are dispatched, without running them."""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from pspfast import backends

# With the formulas of the Triton ops.
backends.load_triton_ops()


@torch.library.register_fake("mkldnn::_convolution_pointwise_.binary")
def _convolution_into_fake(residual: Tensor, *args: Any) -> Tensor:
    """torch has none."""
    return residual


# Allocates, writes nothing.
_ALLOCATIONS = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided")


@dataclass
class Cost:
    """Of the launches of one operator."""

    launches: int = 0
    flops: int = 0
    bytes: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.launches + other.launches, self.flops + other.flops, self.bytes + other.bytes
        )


class Footprint(TorchDispatchMode):
    """Counts operators while it is active, and the memory of the tensors they return.

    An operator reads each tensor that it is given once and writes each that it returns or modifies
    once: what a kernel moves at least where nothing stays in a cache from one to the next. Views
    and allocations are no launches. FLOPs are those of convolutions and matrix products, direct
    ones, and of this project's operators that stand in for such.

    Args:
        tensors: alive from the start: parameters, buffers, inputs.
    """

    def __init__(self, tensors: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.costs: dict[str, list[Cost]] = defaultdict(list)
        self.live_bytes = self.peak_bytes = 0
        # After each operator.
        self.live_bytes_over_time: list[int] = []
        self._storages: set[int] = set()
        self.hold(tensors)

    @property
    def total(self) -> Cost:
        return sum((cost for costs in self.costs.values() for cost in costs), Cost())

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        given, returned = _tensors((args, kwargs)), _tensors(out)
        known = {_storage(t) for t in given}
        fresh = [t for t in returned if _storage(t) not in known]
        self.hold(fresh)
        self.live_bytes_over_time.append(self.live_bytes)
        written = fresh + _modified(func, args, kwargs)
        name = func._overloadpacket.__name__
        if written and name not in _ALLOCATIONS:
            formula = flop_registry.get(func._overloadpacket)
            flops = formula(*args, **kwargs, out_val=out) if formula else 0
            moved = sum(map(_bytes, given)) + sum(map(_bytes, written))
            self.costs[name.removesuffix("_triton")].append(Cost(1, flops, moved))
        return out

    def hold(self, tensors: Iterable[Tensor]) -> None:
        """Counts their memory from now on until they are gone."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key not in self._storages:
                self._storages.add(key)
                self.live_bytes += size
                self.peak_bytes = max(self.peak_bytes, self.live_bytes)
                weakref.finalize(storage, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self._storages.remove(key)
        self.live_bytes -= size


def _tensors(tree: Any) -> list[Tensor]:
    """Distinct ones."""
    return list({id(t): t for t in tree_leaves(tree) if isinstance(t, Tensor)}.values())


def _modified(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    arguments = func._schema.arguments
    values = dict(zip((a.name for a in arguments), args, strict=False)) | kwargs
    return _tensors(
        [values.get(a.name) for a in arguments if a.alias_info and a.alias_info.is_write]
    )


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _bytes(tensor: Tensor) -> int:
    """Of its elements; an expanded tensor has no more of them than its memory."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())

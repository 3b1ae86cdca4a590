"""Normalised maps that are computed again in backward instead of being kept.

Eager mode keeps two maps of the same size for each BatchNorm and ReLU: the BatchNorm's input z, and
``relu(bn(z))`` for the ReLU and for the convolution that follows. The second is given back by the
first, bit for bit, for the time of a forward BatchNorm; a compiler makes that choice by itself.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

# Outputs of blocks that are computed one from the other. Backward has all of a chain alive when it
# reaches the last, so a longer chain is cut by keeping one. Three are the blocks of ResNet50's
# layer1 and layer4, whose maps are the largest.
_LONGEST_CHAIN = 3

_current: ContextVar[NormalizedMaps | None] = ContextVar("_current", default=None)


@contextmanager
def recompute_normalized_maps() -> Iterator[None]:
    """Within, the maps that :func:`norm` and :func:`norm_relu` return are not kept for backward.

    Nothing changes where somebody else decides what is kept: a compiler, hooks on saved tensors
    around this (activation checkpointing, offloading), ``torch.no_grad``.
    """
    if (
        not torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
    ):
        yield
        return
    maps = NormalizedMaps()
    token = _current.set(maps)
    try:
        with saved_tensors_hooks(maps.recipe_or_tensor, _unpack):
            yield
    finally:
        _current.reset(token)
        # What is saved keeps the hooks, and they keep this.
        maps.recipes.clear()


def norm(z: Tensor, bn: nn.Module) -> Tensor:
    """``bn(z)``."""
    out = bn(z)
    maps = _current.get()
    if maps is not None and _is_recomputed(bn):
        recipe = Recipe(z, bn)
        recipe.version = out._version
        maps.add(out, recipe)
    return out


def norm_relu(z: Tensor, bn: nn.Module, relu: nn.Module, residual: Tensor | None = None) -> Tensor:
    """``relu(bn(z) + residual)``; what :func:`norm` returned may be the residual.

    Plain BatchNorm2d alone is computed again, and only where no hook could change what it returns.
    """
    out = bn(z)
    if residual is not None:
        out += residual
    maps = _current.get()
    if maps is None or not (_is_recomputed(bn) and _is_in_place(relu)):
        return relu(out)
    source = None if residual is None else maps.recipe_or_tensor(residual)
    if isinstance(source, Recipe) and source.depth == _LONGEST_CHAIN:
        assert residual is not None
        source.keep(residual)
    recipe = Recipe(z, bn, relu=True, residual=source)
    # In place, the ReLU keeps the memory that it is given.
    maps.add(out, recipe)
    out = relu(out)
    recipe.version = out._version
    return out


class NormalizedMaps:
    """The maps of one forward pass and how each is computed again."""

    def __init__(self) -> None:
        self.recipes: dict[tuple[object, ...], tuple[weakref.ref[Tensor], Recipe]] = {}

    def add(self, out: Tensor, recipe: Recipe) -> None:
        self.recipes[_place(out)] = weakref.ref(out), recipe

    def recipe_or_tensor(self, tensor: Tensor) -> Recipe | Tensor:
        """The recipe of a tensor that is a map and has not been modified since."""
        reference, recipe = self.recipes.get(_place(tensor), (None, None))
        if reference is None or recipe is None or reference() is None:
            return tensor
        return recipe if recipe.version in (None, tensor._version) else tensor


class Recipe:
    """How ``relu(bn(z) + residual)`` is computed again. All who saved it share one, and one result,
    which goes with the last of them."""

    def __init__(
        self,
        z: Tensor,
        bn: nn.Module,
        *,
        relu: bool = False,
        residual: Tensor | Recipe | None = None,
    ) -> None:
        assert isinstance(bn, nn.BatchNorm2d)
        self.z, self.weight, self.bias = (
            t if t is None else t.detach() for t in (z, bn.weight, bn.bias)
        )
        self.eps = bn.eps
        self.relu = relu
        self.residual = residual.detach() if isinstance(residual, Tensor) else residual
        self.depth: int = residual.depth + 1 if isinstance(residual, Recipe) else 1
        self.version: int | None = None
        self.versions = self._versions()
        self.result: Tensor | None = None

    def keep(self, result: Tensor) -> None:
        """Gives this back from now on, computes nothing."""
        self.result = result.detach()
        self.depth = 0

    def _versions(self) -> list[int]:
        inputs = (self.z, self.weight, self.bias, self.residual)
        return [t._version for t in inputs if isinstance(t, Tensor)]

    def __call__(self) -> Tensor:
        if self.result is None:
            if self._versions() != self.versions:
                raise RuntimeError(
                    "PSPNet: backward: a BatchNorm's weight, bias or input has been modified in "
                    "place since forward"
                )
            with torch.no_grad(), torch.autocast(self.z.device.type, enabled=False):
                out = F.batch_norm(
                    self.z, None, None, self.weight, self.bias, training=True, eps=self.eps
                )
                if self.residual is not None:
                    out += _unpack(self.residual)
                self.result = out.relu_() if self.relu else out
        return self.result


def _unpack(saved: Tensor | Recipe) -> Tensor:
    return saved() if isinstance(saved, Recipe) else saved


def _place(tensor: Tensor) -> tuple[object, ...]:
    storage = tensor.untyped_storage()._cdata
    return storage, tensor.storage_offset(), tensor.shape, tensor.stride()


def _is_recomputed(bn: nn.Module) -> bool:
    return type(bn) is nn.BatchNorm2d and bn.training and not _has_hooks(bn)


def _is_in_place(relu: nn.Module) -> bool:
    return type(relu) is nn.ReLU and relu.inplace and not _has_hooks(relu)


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)

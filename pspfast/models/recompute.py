"""BatchNorm, residual and ReLU in one, and maps that are computed again in backward.

Eager mode keeps two maps of the same size for each BatchNorm and ReLU: the BatchNorm's input z, and
``relu(bn(z))`` for the ReLU and for the convolution that follows. The second is given back by the
first and the statistics, bit for bit, in one read and write.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from pspfast.ops.batch_norm_relu import (
    Normalized,
    has_kernel,
    normalize,
    normalize_again,
    update_running_statistics,
)

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
    return _norm(z, bn, None, None) if _is_fused(z, bn) else bn(z)


def norm_relu(z: Tensor, bn: nn.Module, relu: nn.Module, residual: Tensor | None = None) -> Tensor:
    """``relu(bn(z) + residual)``."""
    if _is_fused(z, bn) and type(relu) is nn.ReLU and not _has_hooks(relu):
        return _norm(z, bn, relu, residual)
    out = bn(z)
    if residual is not None:
        out += residual
    return relu(out)


def _norm(z: Tensor, bn: nn.Module, relu: nn.Module | None, residual: Tensor | None) -> Tensor:
    assert isinstance(bn, nn.BatchNorm2d) and bn.momentum is not None
    assert bn.num_batches_tracked is not None
    if residual is not None:
        residual = residual.to(z.dtype)
    with_relu = relu is not None
    normalized = normalize(z, bn.weight, bn.bias, residual, relu=with_relu, eps=bn.eps)
    bn.num_batches_tracked.add_(1)
    update_running_statistics(
        bn.running_mean,
        bn.running_var,
        normalized.mean,
        normalized.var,
        z.numel() // z.shape[1],
        bn.momentum,
    )
    maps = _current.get()
    if maps is not None:
        source = None if residual is None else maps.recipe_or_tensor(residual)
        if isinstance(source, Recipe) and source.depth == _LONGEST_CHAIN:
            assert residual is not None
            source.keep(residual)
        maps.add(normalized.out, Recipe(z, bn, normalized, with_relu, source))
    return normalized.out


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
        return recipe if recipe.version == tensor._version else tensor


class Recipe:
    """How a map is computed again. All who saved it share one, and one result, which goes with the
    last of them."""

    def __init__(
        self,
        z: Tensor,
        bn: nn.BatchNorm2d,
        normalized: Normalized,
        relu: bool,
        residual: Tensor | Recipe | None,
    ) -> None:
        self.z, self.weight, self.bias = z.detach(), bn.weight.detach(), bn.bias.detach()
        self.statistics = normalized.mean, normalized.var
        self.relu, self.eps = relu, bn.eps
        self.residual = residual.detach() if isinstance(residual, Tensor) else residual
        self.depth: int = residual.depth + 1 if isinstance(residual, Recipe) else 1
        self.version = normalized.out._version
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
            with torch.no_grad():
                self.result = normalize_again(
                    self.z,
                    self.statistics,
                    self.weight,
                    self.bias,
                    None if self.residual is None else _unpack(self.residual),
                    relu=self.relu,
                    eps=self.eps,
                )
        return self.result


def _unpack(saved: Tensor | Recipe) -> Tensor:
    return saved() if isinstance(saved, Recipe) else saved


def _place(tensor: Tensor) -> tuple[object, ...]:
    storage = tensor.untyped_storage()._cdata
    return storage, tensor.storage_offset(), tensor.shape, tensor.stride()


def _is_fused(z: Tensor, bn: nn.Module) -> bool:
    """Whether it is plain BatchNorm2d in training, of which no hook sees or changes the result; a
    compiler fuses it by itself."""
    return (
        type(bn) is nn.BatchNorm2d
        and bn.training
        and bn.affine
        and bn.track_running_stats
        and bn.momentum is not None
        and not _has_hooks(bn)
        and not torch.compiler.is_compiling()
        # Of one value per channel bn raises torch's own error.
        and z.numel() > z.shape[1]
        and has_kernel(z)
    )


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)

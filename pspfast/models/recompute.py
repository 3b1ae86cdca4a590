"""Normalised maps that are computed again in backward instead of being kept."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks


def norm_relu(z: Tensor, bn: nn.Module, relu: nn.ReLU, then: Callable[[Tensor], Tensor]) -> Tensor:
    """``then(relu(bn(z)))``, which keeps z alone for backward.

    Eager mode keeps ``relu(bn(z))`` too, for the ReLU and for ``then``, a convolution or pool. It
    is as large as z, and z gives it back, bit for bit, for the time of a forward BatchNorm; a
    compiler makes that choice by itself. Plain BatchNorm2d alone is computed again, and only where
    no hook could change what it returns.
    """
    if not _is_recomputed(bn, relu):
        return then(relu(bn(z)))

    assert isinstance(bn, nn.BatchNorm2d)
    recipe = Recipe(z, bn)
    normalized = None

    def pack(tensor: Tensor) -> Tensor | Recipe:
        is_normalized = normalized is not None and tensor.is_set_to(normalized)
        return recipe if is_normalized else tensor

    def unpack(saved: Tensor | Recipe) -> Tensor:
        return saved() if isinstance(saved, Recipe) else saved

    with saved_tensors_hooks(pack, unpack):
        normalized = bn(z)
        normalized = relu(normalized)  # In place, the same memory.
        return then(normalized)


class Recipe:
    """How ``relu(bn(z))`` is computed again. All who saved it share one, and one result, which goes
    with the last of them."""

    def __init__(self, z: Tensor, bn: nn.BatchNorm2d) -> None:
        self.z, self.weight, self.bias = (
            t if t is None else t.detach() for t in (z, bn.weight, bn.bias)
        )
        self.eps = bn.eps
        self.versions = self._versions()
        self.result: Tensor | None = None

    def _versions(self) -> list[int | None]:
        return [t if t is None else t._version for t in (self.z, self.weight, self.bias)]

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
                self.result = out.relu_()
        return self.result


def _is_recomputed(bn: nn.Module, relu: nn.Module) -> bool:
    return (
        type(bn) is nn.BatchNorm2d
        and bn.training
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not any(module._forward_hooks or module._forward_pre_hooks for module in (bn, relu))
    )

"""BatchNorm, residual and ReLU in one, and maps that are computed again in backward.

Eager mode keeps two maps of the same size for each BatchNorm and ReLU: the BatchNorm's input x, and
``relu(bn(x))`` for the ReLU and for the convolution that follows. The second is computed again from
the first and the statistics, bit for bit, in one read and write.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.modules.batchnorm import _BatchNorm

from pspfast import backends
from pspfast.models.hooks import is_watched
from pspfast.ops.batch_norm_relu import batch_norm_statistics, has_kernel, normalize

# A block's output is computed again from the output of the block before it, and so on. Backward has
# all outputs of such a chain in memory when it reaches the chain's last block, so the output at the
# end of a chain of this length is kept instead. Three blocks are ResNet50's layer1 and its layer4,
# whose maps are the largest.
_LONGEST_CHAIN = 3

_current: ContextVar[RecomputedMaps | None] = ContextVar("_current", default=None)


@contextmanager
def recompute_normalized_maps(network: nn.Module | None = None) -> Iterator[None]:
    """Within, the maps that :func:`norm` and :func:`norm_relu` return are not kept for backward.

    Where FSDP divides the weights of the network that runs within, it may not have gathered those
    of a BatchNorm when a map is computed again: copies are kept, of two numbers for each channel.

    Nothing changes where somebody else decides what is kept: a compiler, hooks on saved tensors
    around this (activation checkpointing, offloading), ``torch.no_grad``.
    """
    if (
        not torch.is_grad_enabled()
        or backends.is_transformed()
        or torch.compiler.is_compiling()
        or torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
    ):
        yield
        return
    maps = RecomputedMaps(network is not None and any(map(_is_sharded, network.modules())))
    token = _current.set(maps)
    try:
        with saved_tensors_hooks(maps.pack, _unpack):
            yield
    finally:
        _current.reset(token)
        # What is saved keeps the hooks, and they keep this.
        maps.clear()


def norm(x: Tensor, bn: nn.Module) -> Tensor:
    """``bn(x)``."""
    return _norm(x, bn, None, None) if _is_fused(x, bn) else bn(x)


def norm_relu(x: Tensor, bn: nn.Module, relu: nn.Module, residual: Tensor | None = None) -> Tensor:
    """``relu(bn(x) + residual)``."""
    if _is_fused(x, bn) and type(relu) is nn.ReLU and not is_watched(relu):
        return _norm(x, bn, relu, residual)
    out = bn(x)
    if residual is not None:
        # A hook may have kept the output, and torch forbids writing to it after backward hooks.
        out = out + residual.to(out.dtype) if is_watched(bn) else out.add_(residual)
    return relu(out)


def _norm(x: Tensor, bn: nn.Module, relu: nn.Module | None, residual: Tensor | None) -> Tensor:
    assert isinstance(bn, _BatchNorm) and bn.momentum is not None
    if residual is not None:
        residual = residual.to(x.dtype)
    with_relu = relu is not None
    group = _processes_of(bn)
    running = bn.running_mean, bn.running_var, bn.num_batches_tracked
    statistics = batch_norm_statistics(x, running, bn.momentum, group)
    out = normalize(
        x, statistics, bn.weight, bn.bias, residual, relu=with_relu, eps=bn.eps, group=group
    )
    maps = _current.get()
    if maps is not None:
        source = None if residual is None else maps.pack(residual)
        if isinstance(source, Recomputation) and source.depth == _LONGEST_CHAIN:
            assert residual is not None
            source.keep(residual)
        weights = bn.weight.detach(), bn.bias.detach()
        if maps.copies_weights:
            weights = weights[0].clone(), weights[1].clone()
        recomputation = Recomputation(
            x, statistics, weights, source, with_relu, bn.eps, out._version
        )
        maps.add(out, recomputation)
    return out


class RecomputedMaps:
    """The maps of one forward pass that can be computed again, found by the memory they are in."""

    def __init__(self, copies_weights: bool) -> None:
        self.copies_weights = copies_weights
        self._found: dict[tuple[object, ...], tuple[weakref.ref[Tensor], Recomputation]] = {}

    def add(self, out: Tensor, recomputation: Recomputation) -> None:
        self._found[_memory_of(out)] = weakref.ref(out), recomputation

    def clear(self) -> None:
        self._found.clear()

    def pack(self, tensor: Tensor) -> Recomputation | Tensor:
        """How to compute the tensor again, if it is such a map and has not been modified since;
        else the tensor."""
        reference, recomputation = self._found.get(_memory_of(tensor), (None, None))
        is_known = reference is not None and reference() is not None
        if is_known and recomputation is not None and recomputation.version == tensor._version:
            return recomputation
        # Without its graph: an operator that saves its own output would keep itself alive, and with
        # it all that it has saved, if nobody runs backward.
        return tensor.detach()


class Recomputation:
    """Computes a map again from the BatchNorm's input.

    All that saved the map share one of these and the one result, which is freed with the last.
    """

    def __init__(
        self,
        x: Tensor,
        statistics: Tensor,
        weights: tuple[Tensor, Tensor],
        residual: Tensor | Recomputation | None,
        relu: bool,
        eps: float,
        version: int,
    ) -> None:
        self.x = x.detach()
        self.weight, self.bias = weights
        self.statistics = statistics
        self.relu, self.eps = relu, eps
        self.residual = residual.detach() if isinstance(residual, Tensor) else residual
        self.depth: int = residual.depth + 1 if isinstance(residual, Recomputation) else 1
        self.version = version
        self.versions = self._versions()
        self.result: Tensor | None = None

    def keep(self, result: Tensor) -> None:
        """Returns this result from then on and computes nothing."""
        self.result = result.detach()
        self.depth = 0

    def _versions(self) -> list[int]:
        inputs = (self.x, self.weight, self.bias, self.residual)
        return [t._version for t in inputs if isinstance(t, Tensor)]

    def __call__(self) -> Tensor:
        if self.result is None:
            if self._versions() != self.versions:
                raise RuntimeError(
                    "PSPNet: backward: a BatchNorm's weight, bias or input has been modified in "
                    "place since forward"
                )
            with torch.no_grad():
                self.result = normalize(
                    self.x,
                    self.statistics,
                    self.weight,
                    self.bias,
                    None if self.residual is None else _unpack(self.residual),
                    relu=self.relu,
                    eps=self.eps,
                )
        return self.result


def _is_sharded(module: nn.Module) -> bool:
    """Whether FSDP2 divides its parameters, which it does not if nobody has imported it."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and isinstance(module, fsdp.FSDPModule)


def _unpack(saved: Tensor | Recomputation) -> Tensor:
    return saved() if isinstance(saved, Recomputation) else saved


def _memory_of(tensor: Tensor) -> tuple[object, ...]:
    """Equal for tensors that are the same elements of the same storage in the same order."""
    storage = tensor.untyped_storage()._cdata
    return storage, tensor.storage_offset(), tensor.shape, tensor.stride()


def _is_fused(x: Tensor, bn: nn.Module) -> bool:
    """Whether a kernel may take the place of calling ``bn``.

    So it is for a plain BatchNorm2d or SyncBatchNorm in training whose call nobody watches or
    changes. A compiler fuses it by itself.
    """
    return bool(
        not torch.compiler.is_compiling()
        and type(bn) in (nn.BatchNorm2d, nn.SyncBatchNorm)
        and bn.training
        and bn.affine
        and bn.track_running_stats
        and bn.momentum is not None
        and not is_watched(bn)
        # Of one value per channel bn raises torch's own error.
        and (x.numel() > x.shape[1] or _processes_of(bn) is not None)
        and has_kernel(x)
    )


def _processes_of(bn: nn.Module) -> dist.ProcessGroup | None:
    """Those whose images a BatchNorm takes its statistics of; None where that is this one alone."""
    if type(bn) is not nn.SyncBatchNorm or not dist.is_available() or not dist.is_initialized():
        return None
    group = bn.process_group or dist.group.WORLD
    return group if dist.get_world_size(group) > 1 else None

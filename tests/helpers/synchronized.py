"""What processes of a group do with their parts of a batch, and one process with the whole; and
how they agree."""

import copy
from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from pspfast import PSPNet, distributed
from pspfast.models.recompute import Recomputation
from pspfast.ops import batch_norm_relu
from pspfast.training.activation_checkpointing import checkpoint_activations, residual_blocks


@dataclass
class NormCase:
    """Inputs of a whole batch; the processes have parts of these sizes."""

    x: Tensor
    residual: Tensor | None
    grad: Tensor
    weight: Tensor
    bias: Tensor
    relu: bool
    sizes: tuple[int, ...]
    device: str = "cpu"

    def run(self, part: int | None) -> dict[str, Tensor]:
        """The map, the gradients and the running statistics, of a part in the group or of all."""

        def own(x: Tensor | None) -> Tensor | None:
            if x is not None and part is not None:
                x = x.split(self.sizes)[part]
            return x if x is None else x.to(self.device)

        leaves = {"x": own(self.x), "residual": own(self.residual)}
        leaves |= {"weight": self.weight.to(self.device), "bias": self.bias.to(self.device)}
        leaves = {k: v.detach().requires_grad_() for k, v in leaves.items() if v is not None}
        channels = self.x.shape[1]
        zeros = self.weight.new_zeros(channels, device=self.device)
        running = zeros, zeros + 1
        group = None if part is None else dist.group.WORLD
        out = batch_norm_relu(
            leaves["x"],
            *running,
            *(leaves["weight"], leaves["bias"], leaves.get("residual")),
            relu=self.relu,
            group=group,
        )
        out.backward(own(self.grad))
        grads = {f"gradient of {name}": leaf.grad for name, leaf in leaves.items()}
        results = {"out": out.detach(), **grads, "mean": running[0], "var": running[1]}
        return {name: result.cpu() for name, result in results.items()}


def run_norms(rank: int, cases: list[NormCase]) -> list[dict[str, Tensor]]:
    return [case.run(rank) for case in cases]


@dataclass
class StepCase:
    """A training step of a network on a batch, of which the processes have parts of these sizes."""

    sizes: tuple[int, ...]
    sharding: str = "none"
    checkpointed: bool = False
    accumulate: int = 1
    autocast: bool = False
    dtype: torch.dtype = torch.float64
    device: str = "cpu"

    def model(self) -> PSPNet:
        torch.manual_seed(0)
        model = PSPNet(18, classes=3, stem="7x7", head_channels=8, aux_channels=8, dropout=0.0)
        return model.to(self.device, self.dtype).train()

    def batches(self) -> list[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(1)
        count = sum(self.sizes)
        return [
            (
                torch.randn(count, 3, 41, 33, generator=generator).to(self.dtype),
                torch.randint(3, (count, 41, 33), generator=generator),
            )
            for _ in range(self.accumulate)
        ]

    def gradient(self, model: nn.Module, rank: int | None) -> None:
        """Of the mean loss of all images of each batch."""
        batches = self.batches()
        for i, (images, labels) in enumerate(batches):
            share = 1.0
            if rank is not None:
                images, labels = (t.split(self.sizes)[rank] for t in (images, labels))
                # DDP and FSDP take the mean over the processes.
                share = len(self.sizes) * self.sizes[rank] / sum(self.sizes)
            images, labels = images.to(self.device), labels.to(self.device)
            waits = isinstance(model, DistributedDataParallel) and i < len(batches) - 1
            with model.no_sync() if waits else nullcontext():
                with torch.autocast(self.device, torch.bfloat16, enabled=self.autocast):
                    _, main_loss, aux_loss = model(images, labels)
                ((main_loss + 0.4 * aux_loss) * share).backward()

    def results(self, model: PSPNet) -> dict[str, Tensor]:
        grads = {name: _whole(parameter.grad) for name, parameter in model.named_parameters()}
        results = grads | {name: buffer.clone() for name, buffer in model.named_buffers()}
        return {name: result.cpu() for name, result in results.items()}

    def alone(self) -> dict[str, Tensor]:
        model = self.model()
        self.gradient(model, None)
        return self.results(model)

    def together(self, rank: int) -> tuple[dict[str, Tensor], int]:
        """And how many maps were computed again by the network itself."""
        prepared: nn.Module = (model := self.model())
        if self.checkpointed:
            checkpoint_activations(model)
        if self.sharding == "fsdp2":
            nn.SyncBatchNorm.convert_sync_batchnorm(model)
            mesh = init_device_mesh(self.device, (len(self.sizes),))
            for block in residual_blocks(model):
                fully_shard(block, mesh=mesh)
            fully_shard(model, mesh=mesh)
        else:
            # It refuses SyncBatchNorm on CPUs, where torch's own layer does not compute.
            prepared = DistributedDataParallel(model)
            nn.SyncBatchNorm.convert_sync_batchnorm(model)
        computed = _count_recomputations()
        self.gradient(prepared, rank)
        return self.results(model), computed()


def run_steps(rank: int, cases: list[StepCase]) -> list[Any]:
    return [case.together(rank) for case in cases]


def agree_to_stop(rank: int) -> list[bool]:
    """Whether any of the processes stops: the second, none, the second; in a group that says that
    it is not of hosts, as NCCL's is not."""
    accelerator: Any = SimpleNamespace(num_processes=dist.get_world_size())
    with mock.patch.object(dist, "get_backend", lambda: "nccl"):
        stops = [distributed.any_stops(accelerator, rank == i) for i in (1, -1, 1)]
    assert distributed._hosts() is not dist.group.WORLD
    return stops


def _count_recomputations() -> Any:
    calls, call = [], Recomputation.__call__

    def counted(self: Recomputation) -> Tensor:
        calls.append(self)
        return call(self)

    Recomputation.__call__ = counted  # type: ignore[method-assign]

    def count() -> int:
        Recomputation.__call__ = call  # type: ignore[method-assign]
        return len(calls)

    return count


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.clone()


def joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """What the processes have of a :class:`NormCase`, as one has it of the whole batch."""
    whole = {
        name: torch.cat([part[name] for part in parts])
        for name in ("out", "gradient of x", "gradient of residual")
        if name in parts[0]
    }
    for name in ("gradient of weight", "gradient of bias"):
        whole[name] = sum((part[name] for part in parts), torch.zeros(()))
    return copy.copy(parts[0]) | whole

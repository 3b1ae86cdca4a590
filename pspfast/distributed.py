"""What several processes do together, and what they agree on."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    broadcast_object_list,
    gather_object,
)

# DDP would send all buffers before every step; SyncBatchNorm has the same in all processes.
# Gradients that are views of DDP's buckets are not held twice, nor copied back.
DDP_OPTIONS = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)


def make_accelerator(precision: str) -> Accelerator:
    """Of this process; raises where the device does not have the precision."""
    # Unless it is told, it takes each of several processes on CPUs for the only one.
    is_cpu = not torch.accelerator.is_available()
    return Accelerator(mixed_precision=precision, cpu=is_cpu, kwargs_handlers=[DDP_OPTIONS])


def bar_disabled(accelerator: Accelerator) -> bool | None:
    """None leaves it to tqdm, which shows bars on a terminal only."""
    return None if accelerator.is_main_process else True


def on_main(accelerator: Accelerator, action: Callable[[], None]) -> None:
    """Lets the main process do something while the others wait; what it raises, all raise."""
    error: list[Exception | None] = [None]
    if accelerator.is_main_process:
        try:
            action()
        except Exception as raised:
            error = [raised]
    if accelerator.num_processes > 1:
        broadcast_object_list(error)
    if error[0]:
        raise error[0]


def any_stops(accelerator: Accelerator, stop: bool, problem: str = "") -> bool:
    """Whether any process was told to stop; all get the same answer, at the same step. The hosts
    agree on it: no device is waited for.

    Args:
        accelerator: of the run.
        stop: whether this process was told to.
        problem: why this process cannot go on.

    Raises:
        ValueError: a process cannot go on.
    """
    if accelerator.num_processes > 1:
        flags = torch.tensor([stop, bool(problem)], dtype=torch.int32)
        dist.all_reduce(flags, group=_hosts())
        stops, problems = flags.tolist()
        stop = stops > 0
        if problems:
            problem = next(filter(None, gather_object([problem])))
    if problem:
        raise ValueError(problem)
    return stop


@cache
def _hosts() -> dist.ProcessGroup:
    """The processes as a group that reduces tensors in the hosts' memory."""
    world: Any = dist.group.WORLD
    if dist.get_backend() != "gloo":
        world = dist.new_group(backend="gloo")
    return world

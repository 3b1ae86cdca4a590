"""Processes that work together, in a process group."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run_processes(
    count: int, function: Callable[..., Any], *args: Any, backend: str = "gloo"
) -> list[Any]:
    """What ``function(rank, *args)`` returns in each process of a group of ``count``.

    The function is one of a module, and all pass through pickle. With NCCL each has a GPU.
    """
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_run, (count, folder, backend, function, args), nprocs=count)
        return [torch.load(Path(folder, f"{rank}"), weights_only=False) for rank in range(count)]


def _run(
    rank: int,
    count: int,
    folder: str,
    backend: str,
    function: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
    torch.set_num_threads(1)
    # What is compared in float32 is computed in it.
    torch.backends.cudnn.allow_tf32 = False
    if backend == "nccl":
        torch.cuda.set_device(rank)
    dist.init_process_group(
        backend, init_method=f"file://{folder}/store", rank=rank, world_size=count
    )
    try:
        result = function(rank, *args)
    finally:
        dist.destroy_process_group()
    torch.save(result, Path(folder, f"{rank}"))

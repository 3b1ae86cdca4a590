"""Checkpoints of a run in progress, written whole or not at all."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch

from pspfast.engine.config import TrainConfig


@contextmanager
def atomic_open(path: Path) -> Iterator[BinaryIO]:
    """Opens a file for writing that appears under its name complete, or keeps what was there."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_checkpoint(path: Path, state: dict[str, Any], keep: int) -> None:
    """Writes a checkpoint, then removes all but the newest ``keep`` from its folder.

    Args:
        path: ``checkpoint-<iteration in 8 digits>.pt``.
        state: tensors, containers, strings and numbers.
        keep: number of checkpoints that stay.
    """
    with atomic_open(path) as file:
        torch.save(state, file)
    for old in list_checkpoints(path.parent)[:-keep]:
        old.unlink()


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted(folder.glob("checkpoint-*.pt"))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The state that ``save_checkpoint`` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no checkpoint of a training run.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path}: not a readable checkpoint: {reason}") from error
    if not isinstance(state, dict) or not {"model", "config", "taxonomy"} <= state.keys():
        raise ValueError(f"{path}: not a checkpoint of pspfast train")
    return state


def find_resume(options: TrainConfig) -> Path | None:
    """The checkpoint that a run starts from, None for a fresh start.

    A fresh start takes the output folder over: with ``overwrite`` it removes the checkpoints of
    the run that is there, which a later ``resume auto`` would take for its own.

    Raises:
        ValueError: the output folder holds a run, and neither ``resume`` nor ``overwrite`` is set.
    """
    found = list_checkpoints(Path(options.output))
    if options.resume == "auto":
        return found[-1] if found else None
    if options.resume:
        return Path(options.resume)
    if found and not options.overwrite:
        raise ValueError(
            f"train.output: {options.output} already holds a run; continue it with "
            "--train.resume auto, replace it with --train.overwrite true, or choose another folder"
        )
    for old in found:
        old.unlink()
    return None


def random_state() -> dict[str, Any]:
    """State of the generators that dropout draws from."""
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()}


def set_random_state(state: dict[str, Any]) -> None:
    """The inverse of ``random_state``; generators of GPUs that were not there stay as they are."""
    torch.set_rng_state(state["cpu"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])

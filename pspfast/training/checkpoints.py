"""Checkpoints of a run in progress: which there are, which stay, from which one it continues."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from pspfast.config import TrainConfig
from pspfast.files import TEMPORARY, read_tensors, write_tensors

_NAME = re.compile(r"checkpoint-(\d{8,})\.safetensors")
# What a run writes besides its checkpoints.
_WEIGHTS = ("best.safetensors", "final.safetensors")
_OTHERS = (*_WEIGHTS, "config.yaml", "log.jsonl")
# Entries of a state that hold tensors, by name; the others are plain values.
_TENSORS = ("model", "momentum", "random")


def checkpoint_path(folder: Path, iteration: int) -> Path:
    """Names that sort by iteration, up to 10^8 steps."""
    return folder / f"checkpoint-{iteration:08d}.safetensors"


def save_checkpoint(path: Path, state: dict[str, Any], keep: int, keep_multiple: int = 0) -> None:
    """Writes a checkpoint, then removes those from its folder that have had their time.

    Later ones go, too: the run went back to an earlier one, and they are no longer its own.

    Args:
        path: of ``checkpoint_path``.
        state: ``model``, ``momentum`` and ``random`` are tensors by name, the rest is what JSON
            holds.
        keep: number of checkpoints that stay, the newest.
        keep_multiple: those after a multiple of this many steps stay besides; 0 for none.
    """
    tensors = {f"{entry}/{name}": t for entry in _TENSORS for name, t in state[entry].items()}
    header = {entry: value for entry, value in state.items() if entry not in _TENSORS}
    write_tensors(path, tensors, header)
    found = list_checkpoints(path.parent)
    written = found.index(path)
    for old in found[: max(0, written + 1 - keep)]:
        if not keep_multiple or _iteration(old) % keep_multiple:
            old.unlink()
    for abandoned in found[written + 1 :]:
        abandoned.unlink()


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first; copies and notes beside them are not the run's."""
    found = folder.glob("checkpoint-*.safetensors")
    return sorted((path for path in found if _NAME.fullmatch(path.name)), key=_iteration)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The state that ``save_checkpoint`` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or no checkpoint of a training run; names the one before it
            that is whole.
    """
    try:
        return _read(path)
    except ValueError as error:
        found = list_checkpoints(path.parent)
        if path not in found:
            raise
        raise ValueError(f"{error}; {_advice(found[: found.index(path)])}") from error


def find_resume(options: TrainConfig) -> Path | None:
    """The checkpoint that a run starts from, None for a fresh start.

    A fresh start takes the output folder over: it removes checkpoints and weights of the run that
    is there, which would be taken for its own.

    Raises:
        ValueError: the output folder holds a run, and neither ``resume`` nor ``overwrite`` is set.
    """
    folder = Path(options.output)
    found = list_checkpoints(folder)
    if options.resume and options.resume != "auto":
        return Path(options.resume)
    if options.resume and found:
        return found[-1]
    found += [folder / name for name in _WEIGHTS if (folder / name).exists()]
    if found and not (options.overwrite or options.resume):
        raise ValueError(
            f"train.output: {options.output} already holds a run; continue it with "
            "--train.resume auto, replace it with --train.overwrite true, or choose another folder"
        )
    for old in found:
        old.unlink()
    return None


def remove_torn(folder: Path) -> None:
    """Removes what a killed process had not written to the end; files of others stay."""
    for path in folder.glob(f"*{TEMPORARY}"):
        name = path.name.removesuffix(TEMPORARY)
        if name in _OTHERS or _NAME.fullmatch(name):
            path.unlink()


def _read(path: Path) -> dict[str, Any]:
    tensors, header = read_tensors(path)
    state: dict[str, Any] = header | {entry: {} for entry in _TENSORS}
    for name, tensor in tensors.items():
        entry, _, rest = name.partition("/")
        if entry not in _TENSORS:
            raise ValueError(f"{path}: not a checkpoint of a run that can be continued")
        tensors_of: dict[str, Tensor] = state[entry]
        tensors_of[rest] = tensor
    return state


def _advice(earlier: list[Path]) -> str:
    for path in reversed(earlier):
        try:
            _read(path)
        except ValueError:
            continue
        return f"to continue from the one before it: --train.resume {path}"
    return "there is no whole checkpoint before it"


def _iteration(path: Path) -> int:
    return int(path.stem.rpartition("-")[2])

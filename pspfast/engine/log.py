"""What a training run leaves to read: ``log.jsonl`` and TensorBoard events."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The records of a run, one for each epoch."""
    path = folder / "log.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


class RunLog:
    """Writer of the records of one run.

    Args:
        folder: where to.
        iteration: where the run starts; later records of an earlier start are dropped.
    """

    def __init__(self, folder: Path, iteration: int) -> None:
        self._path = folder / "log.jsonl"
        kept = [r for r in read_log(folder) if r["iteration"] <= iteration]
        partial = self._path.with_name("log.jsonl.tmp")
        partial.write_text("".join(json.dumps(r) + "\n" for r in kept), encoding="utf-8")
        os.replace(partial, self._path)
        self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=iteration + 1)

    def epoch(self, record: dict[str, Any]) -> None:
        """Appends the record of an epoch; its floats also go to TensorBoard."""
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        for name, value in record.items():
            if isinstance(value, float):
                self._events.add_scalar(name, value, record["iteration"])
        self._events.flush()

    def step(self, scalars: dict[str, float], iteration: int) -> None:
        """Scalars within an epoch, to TensorBoard alone."""
        for name, value in scalars.items():
            self._events.add_scalar(name, value, iteration)

    def picture(self, name: str, pixels: np.ndarray, iteration: int) -> None:
        """A picture ``[h, w, 3]`` in uint8, to TensorBoard."""
        self._events.add_image(name, pixels, iteration, dataformats="HWC")

    def close(self) -> None:
        self._events.close()

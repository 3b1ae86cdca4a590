"""What a training run leaves to read: ``log.jsonl`` and TensorBoard events."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from pspfast.files import atomic_open, read_lines


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The records of a run, one for each epoch.

    Raises:
        ValueError: the file is damaged; names it and the line.
    """
    path = folder / "log.jsonl"
    if not path.exists():
        return []
    records = []
    for number, line in enumerate(read_lines(path, "log of a run"), start=1):
        if not line:
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: not a record of an epoch: {error}") from error
        if not (isinstance(record, dict) and {"epoch", "iteration"} <= record.keys()):
            raise ValueError(f"{path}, line {number}: not a record of an epoch")
        records.append({name: math.nan if v is None else v for name, v in record.items()})
    return records


def describe(record: dict[str, Any]) -> str:
    """What the terminal shows for the record of an epoch: a line, and one for each bad sample."""
    text = (
        f"epoch {record['epoch']}  loss {record['loss']:.3f}  "
        f"train mIoU {record['train_mIoU']:.3f}  {record['images_per_second']:.1f} images/s"
    )
    if "mIoU" in record:
        text += (
            f"  | validation mIoU {record['mIoU']:.3f}  mAcc {record['mAcc']:.3f}  "
            f"pixel acc {record['pixel_acc']:.3f}"
        )
    if record["skipped"]:
        lines = [f"skipped {len(record['skipped'])} samples:", *record["skipped"]]
        text += "\n" + "\n  ".join(lines)
    return text


class RunLog:
    """Writer of the records of one run.

    Args:
        folder: where to.
        iteration: where the run starts; later records, of an earlier start, are dropped.
    """

    def __init__(self, folder: Path, iteration: int) -> None:
        self._path = folder / "log.jsonl"
        self._records = [r for r in read_log(folder) if r["iteration"] <= iteration]
        self._write()
        self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=iteration + 1)

    def epoch(self, record: dict[str, Any]) -> None:
        """Adds the record of an epoch; its floats also go to TensorBoard."""
        self._records.append(record)
        self._write()
        floats = {f"epoch/{name}": v for name, v in record.items() if isinstance(v, float)}
        self.step(floats, record["iteration"])
        self._events.flush()

    def step(self, scalars: dict[str, float], iteration: int) -> None:
        """Scalars for TensorBoard alone."""
        for name, value in scalars.items():
            self._events.add_scalar(name, value, iteration)

    def picture(self, name: str, pixels: np.ndarray, iteration: int) -> None:
        """A picture ``[h, w, 3]`` in uint8, for TensorBoard."""
        self._events.add_image(name, pixels, iteration, dataformats="HWC")

    def close(self) -> None:
        self._events.close()

    def _write(self) -> None:
        # Anew, since a line appended by a process that is killed may be half a line.
        with atomic_open(self._path) as file:
            file.writelines(_line(record) for record in self._records)


def _line(record: dict[str, Any]) -> bytes:
    """Strict JSON, which has no NaN and infinities."""
    finite = {
        k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()
    }
    return json.dumps(finite, allow_nan=False).encode() + b"\n"

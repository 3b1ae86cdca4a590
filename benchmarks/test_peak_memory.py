"""Peak resident memory with and without the ops, each in a process of its own.

Not a time: what pytest-benchmark's table shows for these is how long the processes ran.
"""

import subprocess
import sys
from pathlib import Path

import pytest

TASKS = Path(__file__).with_name("memory_tasks.py")


def peak(task: str, side: str) -> dict[str, float]:
    """Megabytes at the peak: of the process, and above what it had before the task."""
    command = [sys.executable, str(TASKS), task, side]
    total, additional = subprocess.check_output(command, text=True).split()
    return {"total": float(total), "additional": float(additional)}


TASKS_OF_OPS = ["loss-150-60-473", "loss-21-60-473", "loss-19-90-713", "training-step"]


@pytest.mark.parametrize("task", [*TASKS_OF_OPS, "UPerNet-ConvNeXt-T", "SegFormer-B0"])
def test_peak_memory(benchmark, record_row, task) -> None:
    if task not in TASKS_OF_OPS:
        pytest.importorskip("transformers")
    eager = peak(task, "eager")
    ours = benchmark.pedantic(peak, (task, "ours"), rounds=1)
    ratios = {kind: ours[kind] / eager[kind] for kind in ours}
    benchmark.extra_info.update({f"{kind} memory over eager's": r for kind, r in ratios.items()})
    cells = [
        f"{kind} {ours[kind]:.0f} of {eager[kind]:.0f} MB = {ratios[kind]:.3f}x" for kind in ours
    ]
    record_row(f"peak memory, {task}: {', '.join(cells)}")

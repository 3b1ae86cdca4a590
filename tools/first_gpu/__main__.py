"""The first hour on a GPU: ``python -m tools.first_gpu``.

Builds for the GPU of this machine, tests every op on it, looks for wrong accesses and races,
measures ops and a training step against PyTorch, and writes a page and a JSON file: after each
result, so that what is found stays when the time is up. No stage needs another to have succeeded;
together they end within 25 minutes, and need no network.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from tools.first_gpu.page import render
from tools.first_gpu.stages import ROOT, STAGES, Setting, Stage
from tools.report import write_whole

PAGE, RESULTS = "GPU-MEASURED.md", "GPU-MEASURED.json"
# A try without a GPU may be on two cores, where the build alone takes longer than its stage may.
CPU_PATIENCE = 4


class Report:
    """What is known so far, and its files."""

    def __init__(self, folder: Path, gpu: str, command: str) -> None:
        self.folder = folder
        self.results: dict[str, Any] = {
            "gpu": gpu,
            "command": command,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "triton": metadata.version("triton"),
            "measured": time.strftime("%Y-%m-%d %H:%M"),
            "stages": {},
        }

    def write(self) -> None:
        write_whole(self.folder / RESULTS, json.dumps(self.results, indent=1).encode())
        write_whole(self.folder / PAGE, render(self.results).encode())

    def run(self, name: str, stage: Stage, setting: Setting) -> bool:
        """Whether the stage ended well; its failure is a result."""
        start = time.monotonic()
        seconds = stage.seconds * (CPU_PATIENCE if setting.on_cpu else 1)
        entry: dict[str, Any] = {"state": "runs", "s": 0.0, "rows": []}
        self.results["stages"][name] = entry
        try:
            for row in stage.rows(setting, seconds):
                # What was counted so far is in the next count.
                entry["rows"] = [r for r in entry["rows"] if "so far" not in r] + [row]
                entry["s"] = time.monotonic() - start
                print(f"{name}: {json.dumps(row)}", flush=True)
                self.write()
            entry["state"] = "done"
        except Exception as error:
            entry |= {"state": "failed", "error": f"{error}"}
            print(f"{name}: failed: {error}", flush=True)
        entry["s"] = time.monotonic() - start
        self.write()
        return entry["state"] == "done"


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="python -m tools.first_gpu", description=__doc__)
    parser.add_argument(
        "--stages", nargs="+", choices=STAGES, default=list(STAGES), help="which, in their order"
    )
    parser.add_argument(
        "--wheel", type=Path, help="of pspfast, built elsewhere; it is not built here then"
    )
    parser.add_argument("--output", type=Path, help="folder of the page and the JSON file; docs")
    parser.add_argument("--cpu", action="store_true", help="a try without a GPU, of small sizes")
    options = parser.parse_args(arguments)
    if not options.cpu and not torch.cuda.is_available():
        parser.error("expected a GPU, got none; --cpu tries the program without one")
    if options.cpu and options.output is None:
        parser.error("--output: expected a folder with --cpu: docs holds what a GPU measured")
    if options.wheel is not None and not options.wheel.is_file():
        parser.error(f"--wheel: expected a file, got {options.wheel}")
    work = ROOT / "build/first_gpu"
    work.mkdir(parents=True, exist_ok=True)
    wheel = options.wheel.resolve() if options.wheel else None
    setting = Setting(on_cpu=options.cpu, work=work, wheel=wheel)
    gpu = "a CPU, as a try" if options.cpu else torch.cuda.get_device_name()
    command = shlex.join(["python", "-m", "tools.first_gpu", *arguments])
    report = Report(options.output or ROOT / "docs", gpu, command)
    chosen = {name: stage for name, stage in STAGES.items() if name in options.stages}
    ended = [report.run(name, stage, setting) for name, stage in chosen.items()]
    sys.exit(not all(ended))


if __name__ == "__main__":
    main()

"""What the first hour on a GPU consists of: commands, each in a process of its own, and what their
output says."""

from __future__ import annotations

import json
import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
Row = dict[str, Any]
# Of compute-sanitizer where a kernel errs.
SANITIZER_FOUND = 99


@dataclass(frozen=True)
class Setting:
    """What all stages know."""

    on_cpu: bool
    work: Path  # the folder for what is built, and logs
    wheel: Path | None  # built elsewhere

    @property
    def site(self) -> Path:
        """Where the build is installed: neither the environment nor the checkout changes."""
        return self.work / "site"

    @property
    def device(self) -> str:
        return "cpu" if self.on_cpu else "cuda"

    def environment(self) -> dict[str, str]:
        """Of processes, which import what was built, and what is installed where nothing was."""
        paths = [str(self.site), str(ROOT), os.environ.get("PYTHONPATH", "")]
        return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


@dataclass(frozen=True)
class Stage:
    """``rows(setting, seconds)`` runs it and yields what it finds as it comes.

    ``seconds`` are all that it may take: together those of the stages are 25 minutes.
    """

    rows: Callable[[Setting, float], Iterator[Row]]
    seconds: float


def run_lines(
    name: str, command: list[str | Path], setting: Setting, seconds: float, **more: str
) -> Iterator[str]:
    """The lines that a command prints, which go to ``<name>.log`` too; it is ended in time.

    Raises:
        RuntimeError: it fails or takes too long; the message has its last lines.
    """
    deadline = time.monotonic() + seconds
    last: list[str] = []
    log = setting.work / f"{name}.log"
    process = subprocess.Popen(
        [str(part) for part in command],
        cwd=setting.work,
        env=setting.environment() | more,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        # What it starts ends with it.
        start_new_session=True,
    )
    assert process.stdout is not None
    is_late = False
    rest = b""
    try:
        with log.open("ab") as file, selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while not is_late:
                is_late = not selector.select(max(deadline - time.monotonic(), 0))
                chunk = b"" if is_late else os.read(process.stdout.fileno(), 1 << 16)
                if not chunk:
                    break
                file.write(chunk)
                file.flush()
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    text = line.decode(errors="replace")
                    last = [*last[-9:], text]
                    yield text
    finally:
        if process.poll() is None and (is_late or sys.exc_info()[0] is not None):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    if is_late:
        raise RuntimeError(f"{name}: ended after {seconds:.0f} s; {log} has what it printed")
    if process.returncode:
        tail = " | ".join(line for line in last if line.strip())[-600:]
        raise RuntimeError(f"{name}: exit code {process.returncode}: {tail}")


def build(setting: Setting, seconds: float) -> Iterator[Row]:
    """A wheel for the GPU of this machine alone, without build isolation or network."""
    start = time.monotonic()
    shutil.rmtree(setting.site, ignore_errors=True)
    wheel = setting.wheel
    if wheel is None:
        folder = setting.work / "wheel"
        shutil.rmtree(folder, ignore_errors=True)
        # setup.py reads the sources beside it.
        code = f"import os, runpy; os.chdir({str(ROOT)!r}); runpy.run_path('setup.py')"
        arguments = ("build", "--build-base", setting.work / "build", "bdist_wheel", "-d", folder)
        kind = "cpu" if setting.on_cpu else "cuda"
        command = [sys.executable, "-c", code, *arguments]
        yield from _printed(run_lines("build", command, setting, seconds, PSPFAST_BUILD=kind))
        (wheel,) = folder.glob("*.whl")
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index"]
    left = seconds - (time.monotonic() - start)
    command = [*install, "--target", setting.site, wheel]
    yield from _printed(run_lines("install", command, setting, left))
    info = [sys.executable, "-c", "from pspfast.cli.info import report; print(report())"]
    for line in run_lines("info", info, setting, left):
        yield {"kind": "info", "text": line}
    yield {"kind": "build", "s": time.monotonic() - start, "wheel": wheel.name}


def _printed(lines: Iterator[str]) -> Iterator[Row]:
    """No rows, of a command of which only its end counts."""
    for _ in lines:
        pass
    yield from ()


def run_tests(setting: Setting, seconds: float) -> Iterator[Row]:
    """tests/ops on the GPU, and what only a GPU shows; counts are told every ten seconds."""
    if setting.on_cpu:
        files, selected = ("tests/ops/test_pyramid_pool.py",), "cpu and not isa"
    else:
        gpu = ("tests/gpu/test_on_a_gpu.py", "tests/gpu/test_processes_on_gpus.py")
        files, selected = (*gpu, "tests/ops"), "cuda or triton or auto"
    command = [
        *(sys.executable, "-m", "pytest", "-v", "--tb=short", "-p", "no:cacheprovider"),
        *("-c", ROOT / "pyproject.toml", "-k", selected, *(ROOT / file for file in files)),
    ]
    counts: dict[str, int] = {}
    told = time.monotonic()
    try:
        for line in run_lines("tests", command, setting, seconds):
            match = re.match(r"(\S+::.*) (PASSED|FAILED|ERROR|SKIPPED|XFAIL)\b", line)
            if match is None:
                continue
            test, outcome = match.groups()
            counts[outcome] = counts.get(outcome, 0) + 1
            if outcome in ("FAILED", "ERROR"):
                yield {"kind": "failed test", "test": test}
            if time.monotonic() > told + 10:
                told = time.monotonic()
                yield {"kind": "tests", "so far": True, **counts}
    finally:
        yield {"kind": "tests", **counts}


def sanitize(setting: Setting, seconds: float) -> Iterator[Row]:
    """One case of each kernel, forward and backward, under compute-sanitizer."""
    test = ROOT / "tests/gpu/test_on_a_gpu.py"
    selected = "test_determinism and not training_step and (cuda or triton)"
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test, "-k", selected]
    found = shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path="/usr/local/cuda/bin"
    )
    if setting.on_cpu:
        yield {"kind": "sanitizer", "result": "needs a GPU"}
        return
    if found is None:
        raise RuntimeError("sanitize: compute-sanitizer is not on PATH; it is in CUDA's toolkit")
    for tool in ("memcheck", "racecheck"):
        command = [found, "--tool", tool, "--error-exitcode", str(SANITIZER_FOUND), *pytest]
        # An allocation each, or what lies between two tensors is not seen.
        more = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        lines = []
        row: Row = {"kind": "sanitizer", "tool": tool}
        try:
            for line in run_lines(tool, command, setting, seconds / 2, **more):
                if line.startswith("========="):
                    lines.append(line.strip("= "))
            row["result"] = lines[-1] if lines else "said nothing"
        except RuntimeError as error:
            row |= {"result": lines[-1] if lines else "", "error": str(error)}
        yield row


def measure(what: str) -> Callable[[Setting, float], Iterator[Row]]:
    def rows(setting: Setting, seconds: float) -> Iterator[Row]:
        script = ROOT / "tools/first_gpu/measure.py"
        command = [sys.executable, script, what, setting.device]
        for line in run_lines(what, command, setting, seconds):
            if line.startswith('{"kind"'):
                yield json.loads(line)

    return rows


STAGES = {
    "build": Stage(build, 6 * 60),
    "tests": Stage(run_tests, 7 * 60),
    "sanitize": Stage(sanitize, 4 * 60),
    "ops": Stage(measure("ops"), 5 * 60),
    "training": Stage(measure("training"), 3 * 60),
}

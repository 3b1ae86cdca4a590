"""How every benchmark measures: ours and its peers take turns in one process.

A peer runs right before each round of ours, so that both see the same load, clock and caches. What
counts is the ratio of the medians, printed as a table at the end; pytest-benchmark's own table
shows the absolute times of ours. On a GPU the peaks of its memory are there, too.
"""

from __future__ import annotations

import shlex
import statistics
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

# For tools/; at the end, where the folder pspfast shadows no installed one.
sys.path.append(str(Path(__file__).parents[1]))

ROUNDS = 15
WARMUP_ROUNDS = 2

# What report.py names the versions of, where they are installed.
PACKAGES = ("torch", "triton", "onnxruntime", "openvino", "ncnn", "pnnx", "MNN")

_rows: list[str] = []
_recorded: list[str] = []


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def peak_gpu_memory(function: Callable[[], object]) -> float:
    """Megabytes that a call takes at its peak, beyond what is allocated already."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


@pytest.fixture
def compare(
    benchmark: BenchmarkFixture, request: pytest.FixtureRequest, device: torch.device
) -> Callable[..., None]:
    """``compare(ours, {"eager": function, ...})`` measures functions without arguments, those that
    take a second each in fewer ``rounds``, those that have run already without warm-up."""

    def run(
        ours: Callable[[], object],
        peers: dict[str, Callable[[], object]],
        rounds: int = ROUNDS,
        warmup_rounds: int = WARMUP_ROUNDS,
    ) -> None:
        seconds: dict[str, list[float]] = {name: [] for name in peers}

        def finish(function: Callable[[], object]) -> None:
            function()
            if device.type == "cuda":
                torch.cuda.synchronize()

        def run_peers() -> None:
            for name, peer in peers.items():
                start = time.perf_counter()
                finish(peer)
                seconds[name].append(time.perf_counter() - start)

        benchmark.pedantic(
            finish, (ours,), setup=run_peers, rounds=rounds, warmup_rounds=warmup_rounds
        )
        mine = benchmark.stats.stats.median
        medians = {name: statistics.median(s[warmup_rounds:]) for name, s in seconds.items()}
        for name, median in medians.items():
            benchmark.extra_info[f"times as fast as {name}"] = median / mine
        ratios = ", ".join(
            f"{peer} {1e3 * median:.2f} ms = {median / mine:.2f}x"
            for peer, median in medians.items()
        )
        _rows.append(f"{request.node.name}: {1e3 * mine:.2f} ms; {ratios}")
        if device.type == "cuda":
            peaks = {name: peak_gpu_memory(f) for name, f in {"ours": ours, **peers}.items()}
            benchmark.extra_info |= {f"MB of GPU memory, {n}": mb for n, mb in peaks.items()}
            cells = ", ".join(f"{name} {mb:.1f} MB" for name, mb in peaks.items())
            _rows.append(f"{request.node.name}: GPU memory at the peak: {cells}")

    return run


@pytest.fixture
def record_row() -> Callable[[str], None]:
    """Adds a line of another kind to the table and to the JSON."""

    def record(row: str) -> None:
        _rows.append(row)
        _recorded.append(row)

    return record


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    machine_info["command"] = shlex.join(["pytest", *map(str, config.invocation_params.args)])
    machine_info["threads"] = torch.get_num_threads()
    machine_info["vectors"] = torch.backends.cpu.get_cpu_capability()
    machine_info["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    versions = machine_info["versions"] = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue


def pytest_benchmark_update_json(output_json: dict[str, Any]) -> None:
    output_json["rows"] = _recorded


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _rows:
        return
    terminalreporter.section("ours against its peers, medians")
    for row in _rows:
        terminalreporter.write_line(row)

"""Puts what all memory-bound kernels ask of L2 and of DRAM into a table: ``python -m
tools.traffic``."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tools import gpu_code
from tools.cuda_launches import CudaLaunch
from tools.gpu_code import layout, on_chips
from tools.machine_code import ROOT, TritonLaunch, noted_launches
from tools.network_calls import Call
from tools.occupancy import CHIPS, resident_blocks
from tools.report import table, with_section, write_whole
from tools.traffic.counts import Traffic, memory_bound
from tools.traffic.cuda import cuda_traffic

BATCHES = (1, 2, 4, 16)
# "Multiprocessors" of the SXM modules, by what tools/occupancy.py knows of: A100, H100, B200.
MULTIPROCESSORS = {80: 108, 90: 132, 100: 148}
NAMES = {80: "A100", 90: "H100", 100: "B200"}
Launch = CudaLaunch | TritonLaunch


@dataclass(frozen=True)
class Counted:
    """A launch at one batch."""

    blocks: int
    waves: tuple[float, ...]  # on each of CHIPS
    traffic: Traffic


@dataclass
class Row:
    """A kernel of an op; the second launch of an op's kernel has a row of its own."""

    op: str
    kernel: str
    layout: str
    counted: dict[int, Counted] = field(default_factory=dict)  # by batch

    def texts(self) -> list[str]:
        def of_batches(text: Any) -> str:
            return on_chips([text(self.counted[n]) if n in self.counted else "–" for n in BATCHES])

        return [
            self.op,
            f"`{self.kernel}`",
            self.layout,
            of_batches(lambda c: str(c.blocks)),
            *(of_batches(lambda c, i=i: f"{c.waves[i]:.1f}") for i in range(len(CHIPS))),
            of_batches(lambda c: f"{c.traffic.handed_on / c.traffic.least:.0%}"),
            of_batches(lambda c: f"{c.traffic.dram / c.traffic.least:.2f}"),
            of_batches(lambda c: f"{c.traffic.l2 / c.traffic.least:.2f}"),
        ]


HEADER = (
    "op",
    "kernel",
    "layout",
    "blocks",
    *(f"waves, {NAMES[arch]}" for arch in CHIPS),
    "sums",
    "DRAM",
    "L2",
)


def name_of(launch: Launch) -> str:
    if isinstance(launch, TritonLaunch):
        return launch.kernel.__name__
    match = re.search(r"\w+_kernel", launch.kernel)
    assert match is not None
    return match[0]


def blocks_of(launch: Launch) -> int:
    blocks = launch.programs if isinstance(launch, TritonLaunch) else launch.blocks
    assert blocks is not None, launch
    return blocks


@dataclass(frozen=True)
class Resources:
    """Of a kernel, from the table of tools/gpu_code.py: by chip, or one for all."""

    op: str
    kernel: str
    dtypes: str
    layouts: str
    registers: tuple[int, ...]
    threads: int
    blocks: tuple[int, ...]  # of a batch of 16


def read_resources(page: str) -> list[Resources]:
    """All of the page's section.

    Raises:
        ValueError: it has none.
    """
    made = page.partition(f"<!-- {gpu_code.SECTION} -->")[2]
    made = made.partition(f"<!-- /{gpu_code.SECTION} -->")[0]
    found = []
    for line in made.splitlines():
        cells = dict(zip(gpu_code.HEADER, line.strip("| ").split(" | "), strict=False))
        if cells.get("threads", "").isdigit():
            registers, blocks = (
                tuple(map(int, cells[name].split(" / "))) for name in ("registers", "blocks")
            )
            texts = (cells[name] for name in ("op", "kernel", "type", "layout"))
            found.append(Resources(*texts, registers, int(cells["threads"]), blocks))
    if not found:
        raise ValueError(f"expected a table in section {gpu_code.SECTION}, got none")
    return found


def resident(launch: Launch, call: Call, resources: Sequence[Resources]) -> list[int]:
    """Blocks at once on a multiprocessor of each of CHIPS."""
    if isinstance(launch, TritonLaunch):
        kernel = f"`{name_of(launch)}`"
        # Those of several sizes of one op have several rows: the fewest blocks.
        rows = [
            row.blocks * (len(CHIPS) if len(row.blocks) == 1 else 1)
            for row in resources
            if (row.op, row.kernel) == (call.op, kernel)
            and layout(call) in row.layouts
            and "bf16" in row.dtypes
        ]
        return list(map(min, zip(*rows, strict=True)))
    kernel = gpu_code.cuda_kernel(launch)
    of_kernel = [row for row in resources if row.kernel == kernel and "bf16" in row.dtypes]
    # What only a batch of one launches is in the row of one image.
    row = next((row for row in of_kernel if row.op == call.op), of_kernel[0])
    registers = row.registers * (len(CHIPS) if len(row.registers) == 1 else 1)
    return [
        resident_blocks(arch, count, launch.threads, launch.shared_bytes)
        for arch, count in zip(CHIPS, registers, strict=True)
    ]


def an_image(launch: Launch, batch: int) -> Hashable:
    """All that a launch is but the batch: where two have the same, an image's blocks do too."""
    if isinstance(launch, TritonLaunch):
        constants = {name: str(arg) for name, arg in launch.args.items() if name.isupper()}
        how: Hashable = tuple(sorted(constants.items()))
    else:
        how = (launch.threads, launch.shared_bytes)
    return name_of(launch), Fraction(blocks_of(launch), batch), how


def interpreted(batch: int, places: Sequence[int]) -> Iterator[list[Traffic]]:
    """Of the launches of these calls of ``memory_bound``, in a process of their own: Triton decides
    when a kernel is defined whether it will be interpreted."""
    if not places:
        return
    command = [sys.executable, "-m", "tools.traffic.interpreted", *map(str, (batch, *places))]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            yield [Traffic(**launch["traffic"]) for launch in json.loads(line)]
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: exit code {process.returncode}")


def triton_launches(call: Call) -> list[TritonLaunch]:
    with noted_launches() as launches:
        call.triton()
        return launches.taken()


class Rows:
    """Of one language, over all batches."""

    def __init__(self, resources: Sequence[Resources]) -> None:
        self.resources = resources
        self.rows: dict[tuple[Hashable, ...], Row] = {}
        self.seen: dict[tuple[Hashable, ...], list[Traffic]] = {}

    @staticmethod
    def key(call: Call, launches: Sequence[Launch], batch: int) -> tuple[Hashable, ...]:
        return call.op, call.channels_last, *(an_image(launch, batch) for launch in launches)

    def add(
        self, call: Call, launches: Sequence[Launch], batch: int, traffic: list[Traffic]
    ) -> None:
        assert len(traffic) == len(launches), call.op
        self.seen[self.key(call, launches, batch)] = traffic
        times: dict[str, int] = {}
        for launch, of_launch in zip(launches, traffic, strict=True):
            name, blocks = name_of(launch), blocks_of(launch)
            times[name] = times.get(name, 0) + 1
            at_once = resident(launch, call, self.resources)
            waves = tuple(
                blocks / (MULTIPROCESSORS[arch] * count)
                for arch, count in zip(CHIPS, at_once, strict=True)
            )
            row = self.rows.setdefault(
                (call.op, call.channels_last, name, times[name]), Row(call.op, name, layout(call))
            )
            row.counted[batch] = Counted(blocks, waves, of_launch)

    def sorted(self) -> list[Row]:
        return sorted(self.rows.values(), key=lambda row: row.op)


def cuda_rows(resources: Sequence[Resources], batches: Sequence[int] = BATCHES) -> list[Row]:
    rows = Rows(resources)
    for batch in batches:
        for call in tqdm(memory_bound(batch), f"CUDA, {batch}", unit="call"):
            if call.cuda is None:
                continue
            launches = call.cuda()
            known = rows.seen.get(rows.key(call, launches, batch))
            rows.add(call, launches, batch, known or cuda_traffic(launches))
    return rows.sorted()


def triton_rows(resources: Sequence[Resources], batches: Sequence[int] = BATCHES) -> list[Row]:
    rows = Rows(resources)
    for batch in batches:
        calls = memory_bound(batch)
        launches = [triton_launches(call) for call in calls]
        keys = [rows.key(*pair, batch) for pair in zip(calls, launches, strict=True)]
        new = [place for place, key in enumerate(keys) if key not in rows.seen]
        counted = tqdm(interpreted(batch, new), f"Triton, {batch}", len(new), unit="call")
        traffic = {keys[place]: of_call for place, of_call in zip(new, counted, strict=True)}
        for call, of_call, key in zip(calls, launches, keys, strict=True):
            rows.add(call, of_call, batch, rows.seen.get(key) or traffic[key])
    return rows.sorted()


LANGUAGES = {"cuda": cuda_rows, "triton": triton_rows}


def columns(language: str) -> list[str]:
    """Not all of what Triton's kernels read was written, as few programs ran before them."""
    return [name for name in HEADER if language == "cuda" or name != "sums"]


def made_table(language: str, rows: Sequence[Row]) -> str:
    shown = columns(language)
    cells = [dict(zip(HEADER, row.texts(), strict=True)) for row in rows]
    return table(shown, [[row[name] for name in shown] for row in cells])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.traffic", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("docs/GPU.md"))
    parser.add_argument("--only", choices=LANGUAGES)
    options = parser.parse_args(arguments)
    output = options.output
    try:
        for language in [options.only] if options.only else LANGUAGES:
            section = f"traffic_{language}"
            page = output.read_text()
            # What is wrong with the page shows before the minutes of counting.
            with_section(page, section, "")
            made = made_table(language, LANGUAGES[language](read_resources(page)))
            write_whole(output, with_section(page, section, made).encode())
    except (OSError, ValueError) as error:
        parser.error(f"{output}: {error}")


if __name__ == "__main__":
    main()

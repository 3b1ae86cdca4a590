"""Writes the tables of docs/GPU.md."""

from __future__ import annotations

import argparse
from pathlib import Path

from tools.footprint import models
from tools.footprint.pspnet import TASKS, count, ratios
from tools.operator_costs import Footprint
from tools.report import table, with_section, write_whole
from tools.roofline import CHIPS, least_seconds

# Operators of the roofline's table; the others are added up.
SHOWN = 12


def footprint_table(counted: dict[str, dict[str, Footprint]]) -> str:
    header = ("", "", "TFLOP", "GB moved", "GiB at the peak", "operators")
    rows = []
    for task, sides in counted.items():
        for side, footprint in sides.items():
            total = footprint.total
            rows.append(
                (
                    task if side == "eager" else "",
                    side,
                    f"{total.flops / 1e12:.3f}",
                    f"{total.bytes / 1e9:.1f}",
                    f"{footprint.peak_bytes / 2**30:.2f}",
                    str(total.launches),
                )
            )
        by = ratios(**sides)
        cells = [f"{by[kind]:.3f}" for kind in ("FLOPs", "bytes", "peak memory")]
        rows.append(("", "ours / eager", *cells, ""))
    return table(header, rows)


def count_models() -> dict[str, dict[str, Footprint]]:
    return {
        f"{name}, {task}": {
            side: models.count(name, side, training=task == "training")
            for side in ("eager", "ours")
        }
        for name in models.NAMES
        for task in ("inference", "training")
    }


def roofline_table(counted: dict[str, Footprint]) -> str:
    """Milliseconds of the training step, by operator."""
    columns = [(f"{chip.name} {side}", chip, side) for chip in CHIPS for side in ("eager", "ours")]

    def seconds(names: list[str]) -> list[float]:
        return [
            least_seconds(
                [cost for name in names for cost in counted[side].costs.get(name, [])],
                chip.tf32,
                chip.bandwidth,
            )
            for _, chip, side in columns
        ]

    every = sorted({name for f in counted.values() for name in f.costs})
    shown = sorted(every, key=lambda name: -max(seconds([name])))[:SHOWN]
    groups = {f"`{name}`": [name] for name in shown}
    groups["the others"] = [name for name in every if name not in shown]
    groups["all"] = every
    rows = [
        (title, *(f"{1e3 * s:.2f}" if s else "" for s in seconds(names)))
        for title, names in groups.items()
    ]
    return table(("", *(title for title, _, _ in columns)), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("docs/GPU.md"))
    output = parser.parse_args().output
    counted = {task: {s: count(task, s) for s in ("eager", "ours")} for task in TASKS}
    footprint = footprint_table(counted)
    print(footprint)
    roofline = roofline_table(counted["training step, 16 images"])
    of_models = footprint_table(count_models())
    print(of_models)
    page = output.read_text()
    for name, section in (
        ("footprint", footprint),
        ("models", of_models),
        ("roofline", roofline),
    ):
        page = with_section(page, name, section)
    write_whole(output, page.encode())


if __name__ == "__main__":
    main()

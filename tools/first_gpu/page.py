"""The page of what the first hour on a GPU measured."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tools.report import table
from tools.roofline import CHIPS

Results = dict[str, Any]
Rows = list[dict[str, Any]]

INTRODUCTION = """# Measured on {gpu}

Made by this command; do not edit:

```bash
{command}
```

Times are medians, in bfloat16 and channels_last. Bytes are the least that the op has to read and
write, so that its bandwidth is a lower bound; FLOPs are its own. Shares are of the chip's published
peaks."""


def rows_of(results: Results, kind: str) -> Rows:
    return [
        row for stage in results["stages"].values() for row in stage["rows"] if row["kind"] == kind
    ]


def peaks(gpu: str) -> tuple[float, float] | None:
    """FLOP/s in bfloat16 and bytes/s of a chip of the roofline, by the name that its driver has."""
    for chip in CHIPS:
        if chip.name in gpu:
            return chip.bf16, chip.bandwidth
    return None


def op_table(rows: Rows, gpu: str) -> str:
    eager = {(r["op"], r.get("part")): r.get("ms") for r in rows if r["by"] == "eager"}
    compiled = {(r["op"], r.get("part")): r.get("ms") for r in rows if r["by"] == "torch.compile"}
    peak = peaks(gpu)
    cells = []
    for row in rows:
        key = (row["op"], row.get("part"))
        name = [row["op"], row.get("part", ""), row["by"]]
        if "ms" not in row:
            cells.append([*name, f"failed: {row['error']}", *[""] * 6])
            continue
        seconds = row["ms"] / 1e3
        bandwidth, rate = row["bytes"] / seconds, row["flops"] / seconds
        share = max(rate / peak[0], bandwidth / peak[1]) if peak else None
        cells.append(
            [
                *name,
                f"{row['ms']:.3f}",
                *(f"{o[key] / row['ms']:.2f}×" if o.get(key) else "" for o in (eager, compiled)),
                f"{bandwidth / 1e9:.0f}",
                f"{rate / 1e12:.1f}" if row["flops"] else "",
                "" if share is None else f"{share:.0%}",
                f"{row['difference']:.1e}{' **wrong**' if row['wrong'] else ''}",
            ]
        )
    header = ("op", "part", "by", "ms", "× eager", "× torch.compile", "GB/s", "TFLOP/s")
    return table((*header, "of the peak", "difference to float32"), cells)


def training_table(rows: Rows) -> str:
    eager = {r["dtype"]: r["ms"] for r in rows if r["by"] == "eager" and "ms" in r}
    cells = []
    for row in rows:
        name = [row["by"], row["dtype"].removeprefix("torch.")]
        if "ms" not in row:
            cells.append([*name, f"failed: {row['error']}", *[""] * 4])
            continue
        other = eager.get(row["dtype"])
        peak = row.get("GiB at the peak")
        cells.append(
            [
                *name,
                f"{row['ms']:.1f}",
                f"{other / row['ms']:.2f}×" if other else "",
                f"{1e3 * row['images'] / row['ms']:.1f}",
                "" if peak is None else f"{peak:.2f}",
                f"{row['loss']:.4f}",
            ]
        )
    return table(
        ("", "type", "ms", "× eager", "images/s", "GiB at the peak", "loss of the first step"),
        cells,
    )


def stage_table(stages: dict[str, Any]) -> str:
    cells = [
        [name, stage["state"], f"{stage['s']:.0f}", stage.get("error", "")]
        for name, stage in stages.items()
    ]
    return table(("stage", "ended", "s", "error"), cells)


def render(results: Results) -> str:
    gpu = results["gpu"]
    introduction = INTRODUCTION.format(gpu=gpu, command=results["command"])
    parts = [introduction, stage_table(results["stages"])]
    if info := rows_of(results, "info"):
        parts.append("```\n" + "\n".join(row["text"] for row in info) + "\n```")
    if tests := rows_of(results, "tests"):
        failed = [f"- `{row['test']}`" for row in rows_of(results, "failed test")]
        counts = {k: v for k, v in tests[-1].items() if k not in ("kind", "so far")}
        sentence = ", ".join(f"{count} {name.lower()}" for name, count in counts.items())
        parts += ["## Tests", f"{sentence or 'none ran'}.", *_listed(failed)]
    if sanitizer := rows_of(results, "sanitizer"):
        lines = [
            f"- {row.get('tool', 'compute-sanitizer')}: {row['result']} {row.get('error', '')}"
            for row in sanitizer
        ]
        parts += ["## compute-sanitizer", *_listed(line.strip() for line in lines)]
    if ops := rows_of(results, "op"):
        parts += ["## Ops", op_table(ops, gpu)]
    if steps := rows_of(results, "training step"):
        parts += [f"## Training step of PSPNet50, {steps[0].get('images', '?')} images"]
        parts += [training_table(steps)]
    return "\n\n".join(parts) + "\n"


def _listed(lines: Iterable[str]) -> list[str]:
    joined = "\n".join(lines)
    return [joined] if joined else []

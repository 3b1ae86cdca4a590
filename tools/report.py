"""Turns pytest-benchmark's JSON into a page: ``python -m tools.report results.json``."""

from __future__ import annotations

import argparse
import io
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PREFIX = "times as fast as "
MEASURE = "pytest benchmarks/ --benchmark-only --benchmark-json=results.json"
PAGE = Path("docs/BENCHMARKS.md")
# For docs/conftest.py.
NOT_RUN = '<!-- skip: next "measures for 40 minutes; tests/test_report.py makes such a page" -->'
REPORT = "python -m tools.report results.json"

Benchmark = dict[str, Any]


def read_results(path: Path) -> dict[str, Any]:
    """pytest-benchmark's JSON.

    Raises:
        ValueError: the file holds something else, or no benchmark.
    """
    try:
        results = json.loads(path.read_text())
        for benchmark in results["benchmarks"]:
            benchmark["fullname"], benchmark["stats"]["median"], benchmark["extra_info"]
        results["machine_info"], results["datetime"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a JSON file of pytest-benchmark") from error
    if not results["benchmarks"]:
        raise ValueError(f"{path}: holds no benchmark")
    return results


def by_file(benchmarks: Sequence[Benchmark]) -> dict[str, list[Benchmark]]:
    """The benchmarks of ``test_<stem>.py`` for each stem, in the order of their first."""
    sections: dict[str, list[Benchmark]] = {}
    for benchmark in benchmarks:
        stem = Path(benchmark["fullname"].split("::")[0]).stem.removeprefix("test_")
        sections.setdefault(stem, []).append(benchmark)
    return sections


def short_name(benchmark: Benchmark) -> str:
    return benchmark["fullname"].split("::", 1)[1].removeprefix("test_")


def speeds(benchmark: Benchmark) -> dict[str, float]:
    """How many times as fast as each peer ours was."""
    items = benchmark["extra_info"].items()
    return {key.removeprefix(PREFIX): value for key, value in items if key.startswith(PREFIX)}


def union(dicts: Sequence[dict[str, Any]]) -> list[str]:
    """All keys, in the order in which they first appear."""
    return list(dict.fromkeys(key for d in dicts for key in d))


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join(f"| {' | '.join(c.replace('|', chr(92) + '|') for c in r)} |" for r in lines)


def speed_table(benchmarks: Sequence[Benchmark]) -> str:
    peers = union([speeds(benchmark) for benchmark in benchmarks])
    rows = []
    for benchmark in benchmarks:
        ratios = speeds(benchmark)
        cells = [f"{ratios[peer]:.2f}×" if peer in ratios else "" for peer in peers]
        milliseconds = f"{1e3 * benchmark['stats']['median']:.2f}"
        rows.append([f"`{short_name(benchmark)}`", milliseconds, *cells])
    return table(["", "ours, ms", *peers], rows)


def other_table(benchmarks: Sequence[Benchmark]) -> str:
    keys = union([benchmark["extra_info"] for benchmark in benchmarks])
    rows = []
    for benchmark in benchmarks:
        cells = [benchmark["extra_info"].get(key, "") for key in keys]
        texts = [f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in cells]
        rows.append([f"`{short_name(benchmark)}`", *texts])
    return table(["", *keys], rows)


def draw_chart(benchmarks: Sequence[Benchmark]) -> bytes:
    """Horizontal bars, one for each benchmark and peer, as SVG; the same bytes every time."""
    # Here, for what uses the tables alone where there is none.
    import matplotlib
    from matplotlib.figure import Figure

    peers = union([speeds(benchmark) for benchmark in benchmarks])
    bars = [(b, peer, ratio) for b in benchmarks for peer, ratio in speeds(b).items()]
    figure = Figure(figsize=(9, 0.8 + 0.24 * len(bars)), layout="constrained")
    axes = figure.subplots()
    ticks: dict[str, list[int]] = {}
    for position, (benchmark, peer, ratio) in enumerate(bars):
        drawn = axes.barh(position, ratio, color=f"C{peers.index(peer)}", label=peer)
        axes.bar_label(drawn, [f"{ratio:.2f}×"], padding=3, fontsize=8)
        ticks.setdefault(short_name(benchmark), []).append(position)
    middles = [sum(positions) / len(positions) for positions in ticks.values()]
    axes.set_yticks(middles, list(ticks), fontsize=8)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.margins(x=0.1)
    axes.set_xlabel("times as fast as the peer")
    axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    legend = dict(zip(labels, handles, strict=True))
    figure.legend(legend.values(), legend, loc="outside upper center", ncols=4, fontsize=8)
    file = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "pspfast"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def describe_machine(results: dict[str, Any]) -> str:
    machine = results["machine_info"]
    cpu = machine.get("cpu", {})
    facts = [
        ("CPU", f"{cpu.get('brand_raw', 'unknown')}, {cpu.get('count', 'unknown')} cores"),
        ("threads", machine.get("threads")),
        ("vectors", machine.get("vectors")),
        ("GPU", machine.get("gpu")),
        ("system", f"{machine.get('system')} {machine.get('machine')}"),
        ("Python", machine.get("python_version")),
        *machine.get("versions", {}).items(),
        ("measured", results["datetime"][:10]),
    ]
    return table(["", ""], [[name, str(fact)] for name, fact in facts if fact is not None])


def render(results: dict[str, Any], page: str) -> tuple[str, dict[str, bytes]]:
    """The page of this name, and the charts that it shows by their paths beside it."""
    charts = {}
    measure = results["machine_info"].get("command", MEASURE)
    command = REPORT if page == PAGE.name else f"{REPORT} --output {PAGE.with_name(page)}"
    parts = [
        "# Benchmarks",
        "Ours and its peers took turns in one process, on the same inputs. × is how many times as "
        "fast as the peer of its column ours was: the ratio of the medians. "
        "Made by these commands; do not edit:",
        NOT_RUN,
        f"```bash\n{measure}\n{command}\n```",
        describe_machine(results),
    ]
    for stem, benchmarks in by_file(results["benchmarks"]).items():
        parts.append(f"## {stem}")
        timed = [benchmark for benchmark in benchmarks if speeds(benchmark)]
        if timed:
            chart = f"images/{Path(page).stem.lower()}-{stem}.svg"
            charts[chart] = draw_chart(timed)
            parts += [f"![{stem}: times as fast as its peers]({chart})"]
            parts.append(speed_table(timed))
        others = [b for b in benchmarks if b["extra_info"] and not speeds(b)]
        if others:
            parts.append(other_table(others))
    if results.get("rows"):
        parts += ["## Also recorded", "\n".join(f"- {row}" for row in results["rows"])]
    return "\n\n".join(parts) + "\n", charts


def write_whole(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def with_section(page: str, name: str, section: str) -> str:
    """The page with what is between ``<!-- name -->`` and ``<!-- /name -->`` replaced.

    Raises:
        ValueError: the page has not one of each, in order.
    """
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    parts = re.split(f"({re.escape(begin)}|{re.escape(end)})", page)
    if parts[1::2] != [begin, end]:
        raise ValueError(f"expected one {begin} and one {end} behind it, got {parts[1::2]}")
    return f"{parts[0]}{begin}\n\n{section}\n\n{end}{parts[4]}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.report", description=__doc__)
    parser.add_argument("results", type=Path, help="what --benchmark-json wrote")
    parser.add_argument("--output", type=Path, default=PAGE)
    options = parser.parse_args(arguments)
    try:
        page, charts = render(read_results(options.results), options.output.name)
        # The page last: it never shows a chart that is not there.
        for name, chart in charts.items():
            write_whole(options.output.parent / name, chart)
        write_whole(options.output, page.encode())
    except (OSError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()

"""tools/report.py: the page that it makes, and files that it refuses."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


def benchmark(fullname: str, median: float, **extra_info: object) -> dict[str, Any]:
    return {"fullname": fullname, "stats": {"median": median}, "extra_info": extra_info}


def speeds(**ratios: float) -> dict[str, float]:
    return {f"times as fast as {peer}": ratio for peer, ratio in ratios.items()}


RESULTS = {
    "machine_info": {
        "cpu": {"brand_raw": "Some CPU", "count": 2},
        "system": "Linux",
        "machine": "x86_64",
        "python_version": "3.11.7",
        "threads": 2,
        "vectors": "AVX2",
        "gpu": None,
        "versions": {"torch": "2.14.1", "ncnn": "1.0"},
    },
    "datetime": "2026-11-24T11:07:19+00:00",
    "benchmarks": [
        benchmark("benchmarks/test_a.py::test_run[8|9]", 0.0125, **speeds(eager=2.5, ncnn=1.25)),
        benchmark("benchmarks/test_b.py::test_memory[x]", 3.0, **{"memory over eager's": 0.25}),
        benchmark("benchmarks/test_b.py::test_plain", 1.0),
        benchmark("benchmarks/test_a.py::test_again", 2.0, **speeds(MNN=0.5)),
    ],
    "rows": ["MNN left out: MNN not installed"],
}


def report(results: Path, output: Path, check: bool = True) -> str:
    """Runs the command and returns its errors."""
    result = subprocess.run(
        [sys.executable, "-m", "tools.report", results, "--output", output],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == (0 if check else 2), result.stderr
    return result.stderr


def files(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    path = tmp_path / "results.json"
    path.write_text(json.dumps(RESULTS))
    return path


def test_page_and_chart(results: Path, tmp_path: Path) -> None:
    output = tmp_path / "docs" / "BENCHMARKS.md"
    report(results, output)
    written = files(output.parent)
    assert set(written) == {"BENCHMARKS.md", "images/benchmarks-a.svg"}

    page = written["BENCHMARKS.md"].decode()
    before, section_a, section_b, recorded = page.split("\n## ")
    assert "pytest benchmarks/ --benchmark-only --benchmark-json=results.json" in before
    for line in (
        "CPU | Some CPU, 2 cores",
        "threads | 2",
        "vectors | AVX2",
        "torch | 2.14.1",
        "ncnn | 1.0",
    ):
        assert f"| {line} |" in before
    assert "GPU" not in before
    assert "![a: times as fast as its peers](images/benchmarks-a.svg)" in section_a
    assert section_a.strip().splitlines()[-4:] == [
        "|  | ours, ms | eager | ncnn | MNN |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| `run[8\\|9]` | 12.50 | 2.50× | 1.25× |  |",
        "| `again` | 2000.00 |  |  | 0.50× |",
    ]
    assert section_b.strip().splitlines() == [
        "b",
        "",
        "|  | memory over eager's |",
        "| --- | ---: |",
        "| `memory[x]` | 0.250 |",
    ]
    assert recorded == "Also recorded\n\n- MNN left out: MNN not installed\n"

    chart = written["images/benchmarks-a.svg"].decode()
    for text in ("run[8|9]", "again", "eager", "ncnn", "MNN", "2.50×", "1.25×", "0.50×"):
        assert f">{text}</text>" in chart

    assert "\npython -m tools.report results.json\n" in before

    report(results, output)
    assert files(output.parent) == written


def test_another_page(results: Path, tmp_path: Path) -> None:
    """A second machine's, of some benchmarks, with charts of its own."""
    machine = RESULTS["machine_info"] | {"command": "pytest benchmarks/ -k some"}
    results.write_text(json.dumps(RESULTS | {"machine_info": machine}))
    report(results, tmp_path / "BENCHMARKS-other.md")
    page = (tmp_path / "BENCHMARKS-other.md").read_text()
    assert "\npytest benchmarks/ -k some\n" in page
    assert "results.json --output docs/BENCHMARKS-other.md\n" in page
    assert "(images/benchmarks-other-a.svg)" in page
    assert (tmp_path / "images" / "benchmarks-other-a.svg").is_file()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a JSON file of pytest-benchmark"),
        ("[]", "not a JSON file of pytest-benchmark"),
        ('{"benchmarks": [{"name": "x"}]}', "not a JSON file of pytest-benchmark"),
        (json.dumps({**RESULTS, "benchmarks": []}), "holds no benchmark"),
        (None, "No such file"),
    ],
)
def test_refused_file(tmp_path: Path, content: str | None, message: str) -> None:
    results, output = tmp_path / "results.json", tmp_path / "docs" / "BENCHMARKS.md"
    if content is not None:
        results.write_text(content)
    errors = report(results, output, check=False)
    assert message in errors and str(results) in errors
    assert "Traceback" not in errors
    assert not output.parent.exists()


def test_failed_write_keeps_the_old_page(results: Path, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "BENCHMARKS.md").write_text("old")
    (docs / "images").write_text("not a folder")
    before = files(docs)
    assert "images" in report(results, docs / "BENCHMARKS.md", check=False)
    assert files(docs) == before

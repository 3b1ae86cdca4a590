"""tools/first_gpu: results stay whatever fails, and say what was found."""

import json
import os
import select
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from tools.first_gpu import __main__ as program
from tools.first_gpu import measure, stages
from tools.first_gpu.cases import CPU, cases
from tools.first_gpu.page import render
from tools.first_gpu.stages import Row, Setting, Stage, run_lines


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting(on_cpu=True, work=tmp_path, wheel=None)


def python(code: str) -> list[str | Path]:
    return [sys.executable, "-c", code]


def test_each_stage_survives_the_failure_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And each result is in both files before the next one comes."""
    results, page = tmp_path / "out/GPU-MEASURED.json", tmp_path / "out/GPU-MEASURED.md"

    def failing(setting: Setting, seconds: float) -> Iterator[Row]:
        yield {"kind": "sanitizer", "tool": "memcheck", "result": "0 errors"}
        (row,) = json.loads(results.read_text())["stages"]["first"]["rows"]
        assert row["result"] == "0 errors"
        assert "memcheck: 0 errors" in page.read_text()
        raise RuntimeError("the GPU fell off the bus")

    def counting(setting: Setting, seconds: float) -> Iterator[Row]:
        yield {"kind": "tests", "so far": True, "PASSED": 1}
        yield {"kind": "failed test", "test": "test_a.py::test_b"}
        yield {"kind": "tests", "PASSED": 2, "FAILED": 1}

    both = {"first": Stage(failing, 1), "second": Stage(counting, 1), "third": Stage(failing, 1)}
    monkeypatch.setattr(program, "STAGES", both)
    with pytest.raises(SystemExit) as stop:
        chosen = ["--stages", "second", "first"]
        program.main(["--cpu", "--output", str(tmp_path / "out"), *chosen])
    assert stop.value.code == 1
    ended = json.loads(results.read_text())["stages"]
    assert [(name, stage["state"]) for name, stage in ended.items()] == [
        ("first", "failed"),
        ("second", "done"),
    ]
    assert ended["first"]["error"] == "the GPU fell off the bus"
    assert len(ended["second"]["rows"]) == 2
    text = page.read_text()
    assert "2 passed, 1 failed." in text and "- `test_a.py::test_b`" in text
    assert "| first | failed |" in text and "the GPU fell off the bus" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cpu"], "--output: expected a folder with --cpu"),
        (["--cpu", "--output", "x", "--wheel", "none.whl"], "--wheel: expected a file, got none"),
        (["--stages", "fly"], "invalid choice: 'fly'"),
    ],
)
def test_wrong_arguments(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        program.main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        program.main([])
    assert "expected a GPU, got none; --cpu tries" in capsys.readouterr().err


def test_a_command_that_fails_says_how(setting: Setting) -> None:
    code = "import sys; print('a'); sys.exit('the end')"
    with pytest.raises(RuntimeError, match=r"some: exit code 1: a \| the end"):
        list(run_lines("some", python(code), setting, 60))
    assert (setting.work / "some.log").read_text() == "a\nthe end\n"


def test_a_command_that_takes_too_long_ends_with_its_children(setting: Setting) -> None:
    """And what it had said by then has come."""
    child = "import time; time.sleep(600)"
    code = (
        "import subprocess, sys; "
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}]); "
        "print(child.pid, flush=True); child.wait()"
    )
    got = []
    with pytest.raises(RuntimeError, match="some: ended after 3 s"):
        for line in run_lines("some", python(code), setting, 3):
            got.append(line)
    (pid,) = got
    with suppress(ProcessLookupError):  # It has ended and been taken note of.
        ended, _, _ = select.select([os.pidfd_open(int(pid))], [], [], 60)
        assert ended


def test_tests_are_counted_as_they_end(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        "collected 3 items",
        "tests/a.py::test_a[cuda-x y] PASSED   [ 33%]",
        "tests/a.py::test_b[triton] FAILED     [ 66%]",
        "tests/a.py::test_c SKIPPED (none)     [100%]",
        "FAILED tests/a.py::test_b[triton] - assert",
    ]

    def said(*_: object, **__: object) -> Iterator[str]:
        yield from lines
        raise RuntimeError("exit code 1")

    monkeypatch.setattr(stages, "run_lines", said)
    rows = []
    with pytest.raises(RuntimeError):
        for row in stages.run_tests(setting, 1):
            rows.append(row)
    assert rows == [
        {"kind": "failed test", "test": "tests/a.py::test_b[triton]"},
        {"kind": "tests", "PASSED": 1, "FAILED": 1, "SKIPPED": 1},
    ]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Row]:
    """What is measured, with nothing compiled."""
    rows: list[Row] = []
    monkeypatch.setattr(measure, "tell", lambda **row: rows.append(row))
    monkeypatch.setattr(torch, "compile", lambda function: function)
    return rows


@pytest.mark.parametrize("name", cases(CPU))
def test_ops_are_measured_and_compared(name: str, told: list[Row]) -> None:
    case = cases(CPU)[name]
    for with_backward in (False, True) if case.has_gradient else (False,):
        measure.measure_case(name, case, with_backward, torch.device("cpu"))
        rows, told[:] = told[:], []
        assert [row["by"] for row in rows] == ["eager", "auto", "cpu", "torch.compile"]
        assert not [row for row in rows if "error" in row or row.get("wrong")], rows
        assert all(row["difference"] < 0.1 for row in rows)
        assert all(row["ms"] > 0 and row["bytes"] > 0 for row in rows)


def test_a_wrong_result_is_told(told: list[Row], monkeypatch: pytest.MonkeyPatch) -> None:
    case = cases(CPU)["pyramid_pool"]
    by = {"eager": case.function, "auto": lambda x: 1.1 * case.function(x)}
    monkeypatch.setattr(measure, "implementations", lambda *_: by)
    measure.measure_case("pyramid_pool", case, False, torch.device("cpu"))
    assert [row["wrong"] for row in told] == [False, True]
    stage = {"state": "done", "s": 1.0, "rows": told}
    page = render({"gpu": "NVIDIA H100 80GB", "command": "c", "stages": {"ops": stage}})
    assert "**wrong**" in page


def test_page_has_rates_and_shares_of_the_peaks() -> None:
    common = {"kind": "op", "op": "conv", "part": "forward", "flops": 10**12, "bytes": 10**9}
    common |= {"difference": 1e-3, "wrong": False}
    rows = [
        {**common, "by": "eager", "ms": 4.0},
        {**common, "by": "triton", "ms": 2.0},
        {"kind": "op", "op": "conv", "part": "forward", "by": "cuda", "error": "no image"},
        {"kind": "training step", "by": "ours", "dtype": "torch.bfloat16", "images": 16}
        | {"ms": 100.0, "loss": 7.5, "GiB at the peak": 11.25},
    ]
    stage = {"state": "done", "s": 1.0, "rows": rows}
    page = render({"gpu": "NVIDIA H100 80GB", "command": "c", "stages": {"ops": stage}})
    # 500 of 989.5 TFLOP/s, and 500 of 3350 GB/s.
    assert "| conv | forward | triton | 2.000 | 2.00× |  | 500 | 500.0 | 51% | 1.0e-03 |" in page
    assert "| conv | forward | cuda | failed: no image |" in page
    assert "| ours | bfloat16 | 100.0 |  | 160.0 | 11.25 | 7.5000 |" in page

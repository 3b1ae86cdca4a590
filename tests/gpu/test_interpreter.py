"""Runs the tests in ``interpreter/`` in a process of its own: Triton decides when a kernel is
defined whether it will be interpreted."""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

FILES = sorted((Path(__file__).parent / "interpreter").glob("test_*.py"))


def interpret(file: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--no-header", str(file)],
        cwd=cwd,
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def results(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[Path, Future]]:
    """Of the selected files, one a core at a time: the interpreter keeps no more than one busy."""
    outside = tmp_path_factory.mktemp("outside_the_checkout")
    items = (item for item in request.session.items if item.path == request.path)
    files = [item.callspec.params["file"] for item in items]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield {file: pool.submit(interpret, file, outside) for file in files}
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_passes_in_the_interpreter(file: Path, results: dict[Path, Future]) -> None:
    result = results[file].result()
    assert result.returncode == 0, result.stdout + result.stderr

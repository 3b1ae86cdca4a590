"""Runs the tests in ``interpreter/`` in a process of its own: Triton decides when a kernel is
defined whether it will be interpreted."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FILES = sorted((Path(__file__).parent / "interpreter").glob("test_*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_passes_in_the_interpreter(file: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--no-header", str(file)],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr

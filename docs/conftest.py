"""Runs every Python and bash block of the pages: ``pytest docs``.

The blocks of a page run in order in one folder, Python in one namespace. A block that does not run
says why in a comment above it, ``<!-- skip: next "reason" -->``, which becomes a skipped test.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser

# A block takes seconds; `timeout` ends one that hangs, with the processes that it started.
LIMIT = ["timeout", "300"]


def run_bash(example: Example) -> str | None:
    """Output is an error's text; None is success."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [*LIMIT, "bash", "-euo", "pipefail", "-c", example.parsed],
        env={**os.environ, "PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return f"exit status {done.returncode}\n{done.stdout}" if done.returncode else None


def enter_a_folder(namespace: dict[str, Any]) -> None:
    namespace["_before"] = os.getcwd()
    namespace["_folder"] = tempfile.TemporaryDirectory()
    os.chdir(namespace["_folder"].name)


def leave_it(namespace: dict[str, Any]) -> None:
    os.chdir(namespace["_before"])
    namespace["_folder"].cleanup()


pytest_collect_file = Sybil(
    parsers=[
        SkipParser(),
        PythonCodeBlockParser(),
        CodeBlockParser(language="bash", evaluator=run_bash),
    ],
    patterns=["*.md"],
    setup=enter_a_folder,
    teardown=leave_it,
).pytest()

"""One build under several versions of torch: ``python -m tools.torch_versions 2.10.0 2.14.1``.

A wheel is built once, with the torch that is installed. Each version gets an environment of its own
with that wheel, where tests/ops run, or other tests; a line says how they ended and which file they
ran on. An environment takes some gigabytes and is removed before the next is made.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]

# What tests/ops import besides torch. torchvision is of one torch each, and pip finds which; numpy
# 2.4 ended a conversion that the interpreter of Triton 3.6, torch 2.11's, makes.
TEST_PACKAGES = ("torchvision", "pytest", "hypothesis", "numpy<2.4", "pillow", "setuptools")
FIND_LIBRARY = (
    "import pspfast, torch; from pspfast import _extension; "
    "assert _extension.load_error is None, _extension.load_error; "
    "print(torch.__version__, _extension.LIBRARY)"
)


def run(*command: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, **options
    )


def must(*command: str | Path) -> str:
    result = run(*command, cwd=tempfile.gettempdir())
    if result.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{result.stdout}{result.stderr}")
    return result.stdout


def build_wheel(folder: Path) -> Path:
    must(
        sys.executable,
        "-m",
        "pip",
        "wheel",
        ROOT,
        "--no-deps",
        "--no-build-isolation",
        "-w",
        folder,
    )
    (wheel,) = folder.glob("*.whl")
    return wheel


def try_version(version: str, wheel: Path, arguments: list[str]) -> tuple[str, bool]:
    """What pytest says in a fresh environment with this torch, and whether all passed."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder) / "bin" / "python"
        install = (python, "-m", "pip", "install", "-q", "--no-cache-dir")
        torch = "torch" if version == "newest" else f"torch=={version}"
        must(*install, torch, *TEST_PACKAGES)
        must(*install, f"{wheel}[train]")
        found, library = must(python, "-c", FIND_LIBRARY).split()
        digest = hashlib.sha256(Path(library).read_bytes()).hexdigest()[:16]
        # Not by `python -m`, for which the sources in the checkout come before what is installed.
        pytest = (Path(folder) / "bin" / "pytest", "-q", "-p", "no:cacheprovider")
        result = run(
            *pytest,
            *arguments,
            cwd=ROOT,
            env={**os.environ, "PATH": f"{folder}/bin:{os.environ['PATH']}"},
        )
        lines = result.stdout.splitlines()
        failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
        report = f"torch {found}: libpspfast.so {digest}: {lines[-1] if lines else result.stderr}"
        return "\n".join([report, *failed]), result.returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("versions", nargs="+", help="of torch, as 2.10.0; or newest")
    parser.add_argument("--wheel", type=Path, help="one that is built already")
    parser.add_argument("-k", dest="tests", help="which tests, as pytest has it")
    parser.add_argument(
        "--paths", nargs="+", default=["tests/ops"], help="of tests; tests/models, tests/gpu"
    )
    options = parser.parse_args()
    arguments = [*options.paths, *(["-k", options.tests] if options.tests else [])]
    with tempfile.TemporaryDirectory() as folder:
        wheel = options.wheel or build_wheel(Path(folder))
        passed = []
        for version in options.versions:
            report, ended_well = try_version(version, wheel, arguments)
            print(report, flush=True)
            passed.append(ended_well)
    sys.exit(not all(passed))


if __name__ == "__main__":
    main()

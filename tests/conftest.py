"""Fixtures for all tests."""

import os
import signal
import sys
from pathlib import Path

import pytest
import torch

# For tools/; at the end, where the folder pspfast shadows no installed one.
sys.path.append(str(Path(__file__).parents[1]))

from tools.camvid import camvid_folder


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--full-sizes",
        action="store_true",
        help="tests/rewrite/test_whole_models.py at 512x512 and 509x333, which takes long",
    )


def pytest_configure() -> None:
    """Signals as in the foreground; the processes of pytest-xdist, and those that their tests
    start, share the processors; and Inductor, which reads this when it is imported, starts none:
    they would begin in a test's folder and die where it goes before they have started."""
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    # Shells ignore Ctrl-C for what they start in the background, and every process inherits that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
        threads = max(1, (os.cpu_count() or 1) // int(workers))
        torch.set_num_threads(threads)
        os.environ["OMP_NUM_THREADS"] = str(threads)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def outside_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that tests start import the installed package: in the root of the checkout they
    would find ./pspfast, where a regular installation has no compiled library."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def camvid() -> Path:
    return camvid_folder()

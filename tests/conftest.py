"""Fixtures for all tests."""

from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def outside_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that tests start import the installed package: in the root of the checkout they
    would find ./pspfast, where a regular installation has no compiled library."""
    monkeypatch.chdir(tmp_path)

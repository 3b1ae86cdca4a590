"""The tests here need Triton's interpreter; ``../test_interpreter.py`` runs them with it."""

import os
from collections.abc import Iterator

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(autouse=True)
def poisoned_allocations() -> Iterator[None]:
    """Memory that a launcher allocates holds NaN: what is left unwritten fails a test."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)

"""Fixtures for the tests of ops."""

from collections.abc import Iterator

import pytest
import torch
from op_tester import IMPLEMENTATIONS

import pspfast


@pytest.fixture(autouse=True)
def poisoned_allocations() -> Iterator[None]:
    """Memory that an op allocates, in C++ too, holds NaN: what is left unwritten fails a test."""
    assert torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def without_tf32() -> Iterator[None]:
    """Eager is what results are compared with: in float32."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    yield
    matmul.allow_tf32, cudnn.allow_tf32 = before


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request: pytest.FixtureRequest, without_tf32: None) -> Iterator[str]:
    """Each backend that this machine has a device for, chosen for the test."""
    with pspfast.backend(request.param):
        yield request.param


@pytest.fixture
def device(implementation: str) -> torch.device:
    return torch.device("cuda" if implementation in ("cuda", "triton") else "cpu")

"""Fixtures for the tests of ops."""

import ctypes
from collections.abc import Iterator

import pytest
import torch
from op_tester import IMPLEMENTATIONS

import pspfast

# mallopt's M_PERTURB, where the C library is glibc: memory that malloc gives out is filled with the
# complement of a byte, but for such as it maps anew, which begins at M_MMAP_THRESHOLD, 32 MB at
# most. 0x7f7f7f7f is 3e38 in float32, and 0x7f7f NaN in float16.
_M_PERTURB, _FILLED_WITH_7F = -6, 0x80
_M_MMAP_THRESHOLD, _MOST = -3, 32 << 20
_perturb = getattr(ctypes.CDLL(None), "mallopt", lambda option, value: 1)


@pytest.fixture(autouse=True)
def poisoned_allocations() -> Iterator[None]:
    """Tensors that an op allocates hold NaN in Python, and in C++, as all other memory, huge
    numbers: what is read or returned without having been written fails a test."""
    assert torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    _perturb(_M_MMAP_THRESHOLD, _MOST)
    _perturb(_M_PERTURB, _FILLED_WITH_7F)
    yield
    _perturb(_M_PERTURB, 0)
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

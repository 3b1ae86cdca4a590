"""The tests here need Triton's interpreter; ``../test_interpreter.py`` runs them with it."""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder

if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(autouse=True)
def poisoned_allocations() -> Iterator[None]:
    """Memory that a launcher allocates holds NaN: what is left unwritten fails a test."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def _address_range(tensor: Tensor) -> tuple[int, int]:
    if tensor.numel() == 0:
        return 0, 0
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


@pytest.fixture(autouse=True)
def checked_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that reads or writes beside the tensors of its launch fails a test."""
    ranges: list[tuple[int, int]] = []
    copy_arguments = GridExecutor._init_args_hst

    def note_ranges(executor: GridExecutor, args: tuple, kwargs: dict) -> Any:
        ranges[:] = [_address_range(arg) for arg in args if isinstance(arg, Tensor)]
        return copy_arguments(executor, args, kwargs)

    monkeypatch.setattr(GridExecutor, "_init_args_hst", note_ranges)

    for name, mask_place in (("create_masked_load", 0), ("create_masked_store", 1)):
        access = getattr(InterpreterBuilder, name)

        def checked_access(
            builder: InterpreterBuilder,
            pointers: Any,
            *args: Any,
            access: Any = access,
            mask_place: int = mask_place,
        ) -> Any:
            addresses = pointers.data[args[mask_place].data]
            inside = np.zeros(addresses.shape, dtype=bool)
            for begin, end in ranges:
                inside |= (begin <= addresses) & (addresses < end)
            assert inside.all(), "an address outside of all tensors"
            return access(builder, pointers, *args)

        monkeypatch.setattr(InterpreterBuilder, name, checked_access)

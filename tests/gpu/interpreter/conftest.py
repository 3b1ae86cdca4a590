"""The tests here need Triton's interpreter; ``../test_interpreter.py`` runs them with it."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder
from triton.tools.tensor_descriptor import TensorDescriptor

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
        tensors = [arg.base if isinstance(arg, TensorDescriptor) else arg for arg in args]
        ranges[:] = [_address_range(arg) for arg in tensors if isinstance(arg, Tensor)]
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
            **options: Any,
        ) -> Any:
            addresses = pointers.data[np.asarray(args[mask_place].data, dtype=bool)]
            inside = np.zeros(addresses.shape, dtype=bool)
            for begin, end in ranges:
                inside |= (begin <= addresses) & (addresses < end)
            assert inside.all(), "an address outside of all tensors"
            return access(builder, pointers, *args, **options)

        monkeypatch.setattr(InterpreterBuilder, name, checked_access)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """Addresses that kernels write."""
    addresses: list[np.ndarray] = []
    store = InterpreterBuilder.create_masked_store

    def noted_store(
        builder: InterpreterBuilder, pointers: Any, value: Any, mask: Any, *args: Any
    ) -> Any:
        addresses.append(pointers.data[np.asarray(mask.data, dtype=bool)])
        return store(builder, pointers, value, mask, *args)

    monkeypatch.setattr(InterpreterBuilder, "create_masked_store", noted_store)
    return addresses


@pytest.fixture
def last_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a launch only the last program runs."""
    initialise = GridExecutor.__init__
    last = [0, 0, 0]

    def with_one_program(
        executor: GridExecutor, fn: Any, names: Any, grid: Any, *args: Any
    ) -> None:
        def one(arguments: dict[str, Any]) -> tuple[int]:
            sizes = grid(arguments) if callable(grid) else grid
            last[: len(sizes)] = [size - 1 for size in sizes]
            return (1,)

        initialise(executor, fn, names, one, *args)

    monkeypatch.setattr(GridExecutor, "__init__", with_one_program)
    monkeypatch.setattr(
        InterpreterBuilder, "set_grid_idx", lambda b, *_: setattr(b, "grid_idx", tuple(last))
    )
    # It would copy all arguments, to where they are.
    monkeypatch.setattr(GridExecutor, "_restore_args_dev", lambda *_: None)


@pytest.fixture
def sparse_allocations(sparse: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """What launchers allocate takes memory where it is written."""
    allocate = Tensor.new_empty

    def new_empty(
        like: Tensor, shape: Any, dtype: torch.dtype | None = None, **options: Any
    ) -> Tensor:
        if isinstance(shape, int):  # the interpreter's own
            return allocate(like, shape, **options)
        return sparse(shape, dtype=dtype or like.dtype)

    monkeypatch.setattr(Tensor, "new_empty", new_empty)

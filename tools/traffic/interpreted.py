"""Triton's launches in its interpreter, with their accesses counted, as lines of JSON:
``TRITON_INTERPRET=1 python -m tools.traffic.interpreted <batch> <call> …``."""

from __future__ import annotations

import argparse
import ctypes
import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from math import prod
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from torch import Tensor
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder

from tools.cuda_launches import COMPILE
from tools.machine_code import checked
from tools.network_calls import call
from tools.traffic.counts import L1_BYTES, L2_BYTES, CountsStruct, Traffic, memory_bound

# Of an image's programs the first sixteenth runs: the interpreter is slow, and programs that read
# the same are neighbours in all kernels.
PART = 16


@dataclass(frozen=True)
class Interpreted:
    kernel: str
    programs: int
    traffic: Traffic


@cache
def _library() -> ctypes.CDLL:
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "caches.so"
        source = Path(__file__).with_name("caches.cpp")
        checked(*COMPILE, "-O2", "-shared", "-fPIC", source, "-o", library)
        loaded = ctypes.CDLL(str(library))
    loaded.make_caches.restype = ctypes.c_void_p
    return loaded


@dataclass
class _Counter:
    """In place of the interpreter's own accesses, which it makes too."""

    share: int
    launches: list[Interpreted] = field(default_factory=list)
    # What has been read and written stays where it is: no other tensor is seen at its place.
    kept: list[object] = field(default_factory=list)
    program: int = 0
    grid: tuple[int, ...] = ()
    programs_x: int = 0

    def __post_init__(self) -> None:
        sizes = map(ctypes.c_int64, (L1_BYTES, L2_BYTES))
        self.caches = ctypes.c_void_p(_library().make_caches(*sizes))

    def access(self, pointers: Any, mask: Any, store: bool) -> None:
        """Of all threads of a program at once."""
        inside = np.asarray(mask.data, dtype=bool)
        addresses = np.ascontiguousarray(pointers.data[inside], dtype=np.uint64)
        size = pointers.get_element_ty().primitive_bitwidth // 8
        _library().access_all(
            self.caches,
            addresses.ctypes.data_as(ctypes.c_void_p),
            *map(ctypes.c_int64, (addresses.size, size)),
            ctypes.c_bool(store),
        )

    def begin_program(self, builder: InterpreterBuilder) -> None:
        """The next in the order of a GPU, whose first axis is the fastest."""
        first, others = self.program % self.programs_x, self.program // self.programs_x
        builder.grid_idx = (first, others % self.grid[1], others // self.grid[1])
        self.program += 1
        _library().begin_block(self.caches)

    def launch(self, executor: GridExecutor, run: Any, *args: Any, **kwargs: Any) -> None:
        self.kept += [*args, *kwargs.values()]
        self.program = 0
        self.grid = (*executor.grid, 1, 1)[:3]
        self.programs_x = -(-self.grid[0] // self.share)
        executor.grid = (self.programs_x, *self.grid[1:])
        _library().begin_launch(self.caches)
        run(executor, *args, **kwargs)
        counts = CountsStruct()
        _library().get_counts(self.caches, ctypes.byref(counts))
        name = executor.fn.__name__
        self.launches.append(Interpreted(name, prod(self.grid), Traffic.of(counts)))


@contextmanager
def counting(share: int = 1) -> Iterator[list[Interpreted]]:
    """What is launched within, as it is launched; of the programs along the first axis the first
    1/share run."""
    counter = _Counter(share)
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store
    run = GridExecutor.__call__

    def counted_load(builder: Any, pointers: Any, mask: Any, *args: Any, **options: Any) -> Any:
        counter.access(pointers, mask, store=False)
        return load(builder, pointers, mask, *args, **options)

    def counted_store(builder: Any, pointers: Any, value: Any, mask: Any, *args: Any) -> Any:
        counter.access(pointers, mask, store=True)
        return store(builder, pointers, value, mask, *args)

    replaced = {
        (InterpreterBuilder, "create_masked_load"): counted_load,
        (InterpreterBuilder, "create_masked_store"): counted_store,
        (InterpreterBuilder, "set_grid_dim"): lambda builder, *_: setattr(
            builder, "grid_dim", counter.grid
        ),
        (InterpreterBuilder, "set_grid_idx"): lambda builder, *_: counter.begin_program(builder),
        (GridExecutor, "__call__"): lambda executor, *args, **kwargs: counter.launch(
            executor, run, *args, **kwargs
        ),
        # It would copy all arguments to where they are.
        (GridExecutor, "_restore_args_dev"): lambda *_: None,
        # Programs that do not run leave sums unwritten, which a launcher may look at.
        (Tensor, "new_empty"): Tensor.new_zeros,
    }
    try:
        with ExitStack() as stack:
            for (owner, name), function in replaced.items():
                stack.enter_context(mock.patch.object(owner, name, function))
            yield counter.launches
    finally:
        _library().delete_caches(counter.caches)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("batch", type=int)
    parser.add_argument("calls", type=int, nargs="+", help="places among those of memory_bound")
    options = parser.parse_args()
    with mock.patch.object(call, "device", "cpu"):
        calls = memory_bound(options.batch)
        for place in options.calls:
            with counting(share=options.batch * PART) as launches:
                calls[place].triton()
            print(json.dumps([asdict(launch) for launch in launches]), flush=True)


if __name__ == "__main__":
    main()

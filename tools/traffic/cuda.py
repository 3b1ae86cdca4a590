"""CUDA's launches on the emulation, with their accesses counted."""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

from tools.cuda_launches import COMPILE, EMULATION, CudaLaunch
from tools.machine_code import checked
from tools.network_calls.call import ROOM
from tools.traffic.counts import L1_BYTES, L2_BYTES, CountsStruct, Traffic

# No symbol is another library's: each has its own counts.
_FLAGS = ("-O2", "-c", "-fPIC", "-fno-gnu-unique")
# Accesses of all memory call functions, which emulated.cpp has.
_WATCHED = (
    "-fsanitize=kernel-address",
    *(
        option
        for parameter in ("instrumentation-with-call-threshold", "stack", "globals")
        for option in ("--param", f"asan-{parameter}=0")
    ),
)


@cache
def _library(stem: str) -> ctypes.CDLL:
    with tempfile.TemporaryDirectory() as name:
        hooks, kernels, library = (Path(name) / file for file in ("h.o", "k.o", f"{stem}.so"))
        checked(*COMPILE, *_FLAGS, Path(__file__).with_name("emulated.cpp"), "-o", hooks)
        source = EMULATION / f"{stem}.cpp"
        checked(*COMPILE, *_FLAGS, *_WATCHED, "-DEMULATION_WHOLE_GRID", source, "-o", kernels)
        # The scheduler's functions are in both; the first are taken, which nobody watches.
        checked(COMPILE[0], "-shared", hooks, kernels, "-o", library)
        return ctypes.CDLL(str(library))


def _addresses(arguments: Sequence[Any]) -> Iterator[int]:
    for argument in arguments:
        if isinstance(argument, ctypes.c_void_p):
            if argument.value is not None:
                yield argument.value
        elif isinstance(argument, ctypes.Array) and issubclass(argument._type_, ctypes.c_void_p):
            yield from argument


def _run(launch: CudaLaunch) -> list[Traffic]:
    library = _library(launch.stem)
    counts = (CountsStruct * 8)()
    library.begin_counting(ctypes.c_int64(L1_BYTES), ctypes.c_int64(L2_BYTES))
    try:
        for address in _addresses(launch.arguments):
            error = library.reserve(ctypes.c_void_p(address), ctypes.c_int64(ROOM))
            assert error == 0, f"{launch.function}: no memory at {address:#x}"
        error = getattr(library, launch.function)(*launch.arguments)
        assert error == 0, f"{launch.function}: CUDA error {error}"
    finally:
        count = library.end_counting(counts, ctypes.c_int64(len(counts)))
    return [Traffic.of(c) for c in counts[:count]]


def cuda_traffic(launches: Sequence[CudaLaunch]) -> list[Traffic]:
    """Of each of an op's launches, which run on tensors of zeros."""
    traffic: list[Traffic] = []
    for _, group in groupby(launches, key=lambda launch: (launch.function, id(launch.arguments))):
        first, *_ = of_one_call = list(group)
        counted = _run(first)
        assert len(counted) == len(of_one_call)
        traffic += counted
    return traffic

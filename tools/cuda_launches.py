"""What the CUDA launchers launch, without CUDA: they are built on ``emulation/``,
and what they launch is noted instead of run."""

from __future__ import annotations

import ctypes
import os
import tempfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from tools.machine_code import ROOT, checked, demangled

EMULATION = ROOT / "tools/emulation"
COMPILE = (
    os.environ.get("CXX", "g++"),
    "-std=c++20",
    # CUDA code reads and writes elements of any type as 16-byte words.
    "-fno-strict-aliasing",
    f"-I{EMULATION}",
    "-DPSPFAST_WITH_CUDA",
)


@dataclass(frozen=True)
class CudaLaunch:
    stem: str
    kernel: str
    blocks: int
    threads: int
    shared_bytes: int
    # Of the call that launched it: a function of emulation/<stem>.cpp.
    function: str = field(repr=False, compare=False)
    arguments: tuple[Any, ...] = field(repr=False, compare=False)


class _NotedLaunch(ctypes.Structure):
    """Of record_launches.h."""

    _fields_ = [(name, ctypes.c_int64) for name in ("kernel", "blocks", "threads", "shared_bytes")]


@cache
def _library(stem: str) -> tuple[ctypes.CDLL, dict[int, str]]:
    """The launchers of ``csrc/cuda/<stem>.cu``, and kernels by their places in the library."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / f"{stem}.so"
        record = EMULATION / "record_launches.h"
        source = EMULATION / f"{stem}.cpp"
        checked(*COMPILE, "-include", record, "-shared", "-fPIC", source, "-o", library)
        symbols = [line.split() for line in checked("nm", "--defined-only", library).splitlines()]
        return ctypes.CDLL(str(library)), {int(at, 16): symbol for at, _, symbol in symbols}


def cuda_number(stem: str, function: str, *args: Any) -> int:
    """What a function of the launchers returns that launches nothing."""
    library, _ = _library(stem)
    asked = getattr(library, function)
    asked.restype = ctypes.c_int64
    return asked(*args)


def cuda_launches(stem: str, function: str, *args: Any) -> list[CudaLaunch]:
    """What the launcher, called as ``emulation/<stem>.cpp`` has it, launches; nothing runs."""
    library, symbols = _library(stem)
    error = getattr(library, function)(*args)
    assert error == 0, f"{function}: CUDA error {error}"
    noted = (_NotedLaunch * 8)()
    count = library.take_launches(noted, ctypes.c_int64(len(noted)))
    return [
        CudaLaunch(
            stem,
            demangled(symbols[launch.kernel]),
            launch.blocks,
            launch.threads,
            launch.shared_bytes,
            function,
            args,
        )
        for launch in noted[:count]
    ]

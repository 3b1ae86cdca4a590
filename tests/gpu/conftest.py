"""GPU code without a GPU: CUDA kernels on an emulation, and machine code to read."""

import ctypes
import mmap
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch

from tools.machine_code import (
    Launches,
    MachineCode,
    checked,
    compile_cuda,
    noted_launches,
    nvcc_knows,
)

EMULATION = Path(__file__).parents[2] / "tools/emulation"
# CUDA code reads and writes elements of any type as 16-byte words, which C++ would forbid.
GXX_FLAGS = ("-std=c++20", "-g", "-fno-strict-aliasing", f"-I{EMULATION}", "-DPSPFAST_WITH_CUDA")
GXX = (os.environ.get("CXX", "g++"), *GXX_FLAGS)


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., ctypes.CDLL]:
    """``emulated(stem, *flags)`` is the library built of ``emulation/<stem>.cpp``."""

    @cache
    def build(stem: str, *flags: str) -> ctypes.CDLL:
        library = tmp_path_factory.mktemp("emulated") / f"{stem}.so"
        checked(*GXX, *flags, "-O2", "-shared", "-fPIC", EMULATION / f"{stem}.cpp", "-o", library)
        return ctypes.CDLL(str(library))

    return build


@pytest.fixture(scope="session")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """``sanitized(stem, sanitizers, *args)`` runs the program ``emulation/<stem>.cpp`` under
    sanitizers and returns what they report."""

    @cache
    def build(stem: str, sanitizers: str) -> Path:
        program = tmp_path_factory.mktemp("sanitized") / stem
        flags = (f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all")
        checked(*GXX, "-O0", *flags, EMULATION / f"{stem}.cpp", "-o", program)
        return program

    def run_program(stem: str, sanitizers: str, *args: str) -> str:
        command = [build(stem, sanitizers), *args]
        result = subprocess.run(command, capture_output=True, text=True)
        report = re.sub(r".*fully support makecontext/swapcontext.*\n", "", result.stderr)
        return report if result.returncode == 0 else report or f"exit code {result.returncode}"

    return run_program


@pytest.fixture(scope="session")
def sparse() -> Callable[..., torch.Tensor]:
    """``sparse(shape, channels_last, dtype)`` is a tensor of zeros, of any size: it takes memory
    where it is written. bfloat16 by default; [N, …, C] in memory if channels_last."""
    # Python names it since 3.11.
    no_reserve = getattr(mmap, "MAP_NORESERVE", 0x4000)

    def make(
        shape: tuple[int, ...], channels_last: bool = False, dtype: torch.dtype = torch.bfloat16
    ) -> torch.Tensor:
        size = torch.Size(shape).numel()
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve
        memory = mmap.mmap(-1, size * dtype.itemsize, flags=flags)
        # Else every number that is written could take a page of 2 MB.
        memory.madvise(mmap.MADV_NOHUGEPAGE)
        flat = torch.frombuffer(memory, dtype=dtype)
        if not channels_last:
            return flat.view(shape)
        batch, channels, *rest = shape
        return flat.view(batch, *rest, channels).movedim(-1, 1)

    return make


@pytest.fixture
def cuda_code() -> Callable[[str, int], list[MachineCode]]:
    """``cuda_code(stem, arch)`` compiles ``csrc/cuda/<stem>.cu`` for sm_<arch>."""

    def build(stem: str, arch: int) -> list[MachineCode]:
        if not nvcc_knows(arch):
            pytest.skip(f"no nvcc on PATH knows sm_{arch}")
        return compile_cuda(stem, arch)

    return build


@pytest.fixture
def launches() -> Iterator[Launches]:
    """What Triton's launchers launch in the test, which is noted instead of run."""
    with noted_launches() as launches:
        yield launches

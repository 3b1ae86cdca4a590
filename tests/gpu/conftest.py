"""GPU code without a GPU: CUDA kernels on an emulation, and machine code to read."""

import ctypes
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import triton

ROOT = Path(__file__).parents[2]
EMULATION = Path(__file__).parent / "emulation"
# CUDA code reads and writes elements of any type as 16-byte words, which C++ would forbid.
GXX_FLAGS = ("-std=c++20", "-g", "-fno-strict-aliasing", f"-I{EMULATION}", "-DPSPFAST_WITH_CUDA")
GXX = (os.environ.get("CXX", "g++"), *GXX_FLAGS)
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(c) for c in command], capture_output=True, text=True)


def checked(*command: str | Path) -> str:
    result = run(*command)
    assert result.returncode == 0, f"{' '.join(map(str, command))}\n{result.stdout}{result.stderr}"
    return result.stdout


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ctypes.CDLL]:
    """``emulated(stem)`` is the library built of ``emulation/<stem>.cpp``."""

    @cache
    def build(stem: str) -> ctypes.CDLL:
        library = tmp_path_factory.mktemp("emulated") / f"{stem}.so"
        checked(*GXX, "-O2", "-shared", "-fPIC", EMULATION / f"{stem}.cpp", "-o", library)
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
        result = run(build(stem, sanitizers), *args)
        report = re.sub(r".*fully support makecontext/swapcontext.*\n", "", result.stderr)
        return report if result.returncode == 0 else report or f"exit code {result.returncode}"

    return run_program


@dataclass
class MachineCode:
    """A kernel as the hardware gets it; sizes in bytes."""

    name: str
    stack: int
    shared: int
    text: str


def read_cubin(cubin: Path) -> list[MachineCode]:
    usage = checked(CUOBJDUMP, "-res-usage", cubin)
    sass = checked(CUOBJDUMP, "-sass", cubin)
    texts = dict(re.findall(r"Function : (\S+)\n(.*?)(?=Function : |\Z)", sass, re.DOTALL))
    kernels = []
    for name, stack, shared in re.findall(
        r"Function (\S+):\n\s*REG:\d+ STACK:(\d+) SHARED:(\d+)", usage
    ):
        readable = checked("c++filt", name).strip()
        kernels.append(MachineCode(readable, int(stack), int(shared), texts[name]))
    return kernels


@pytest.fixture(scope="session")
def cuda_code(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[MachineCode]]:
    """``cuda_code(stem, arch)`` compiles ``csrc/cuda/<stem>.cu`` for sm_<arch>."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("nvcc is not on PATH")
    known = checked(nvcc, "--list-gpu-arch")

    @cache
    def build(stem: str, arch: int) -> list[MachineCode]:
        if f"compute_{arch}" not in known:
            pytest.skip(f"this nvcc does not know sm_{arch}")
        cubin = tmp_path_factory.mktemp("cuda") / f"{stem}.{arch}.cubin"
        flags = ("-std=c++20", "-O3", f"-arch=sm_{arch}", "-DPSPFAST_WITH_CUDA")
        checked(nvcc, *flags, "-cubin", ROOT / f"csrc/cuda/{stem}.cu", "-o", cubin)
        return read_cubin(cubin)

    return build


@pytest.fixture(scope="session")
def triton_code(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., MachineCode]:
    """``triton_code(kernel, arch, dtype, constants, divisible)`` compiles a Triton kernel for
    sm_<arch>: p_… are pointers to dtype, or to dtype[p_…], other arguments int32 or dtype[…], and
    `divisible` ones known to be multiples of 16, as a launch finds out. The text is PTX; `shared`
    is all of it."""
    directory = tmp_path_factory.mktemp("triton")

    def build(
        kernel: triton.JITFunction,
        arch: int,
        dtype: str | dict[str, str],
        constants: dict[str, object],
        divisible: tuple[str, ...] = (),
    ) -> MachineCode:
        names = kernel.arg_names
        pointers = [name for name in names if name[:2] == "p_"]
        dtypes = dtype if isinstance(dtype, dict) else dict.fromkeys(pointers, dtype)
        signature = {name: dtypes.get(name, "i32") for name in names}
        signature |= dict.fromkeys(constants, "constexpr")
        signature |= {name: f"*{dtypes[name]}" for name in pointers}
        source = triton.compiler.ASTSource(
            kernel,
            signature=signature,
            constexprs={(names.index(name),): value for name, value in constants.items()},
            attrs={
                (i,): [["tt.divisibility", 16]]
                for i, name in enumerate(names)
                if name in pointers or name in divisible
            },
        )
        target = triton.backends.compiler.GPUTarget("cuda", arch, 32)
        compiled = triton.compile(source, target=target, options={"enable_fp_fusion": True})
        cubin = directory / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        (code,) = read_cubin(cubin)
        code.shared = compiled.metadata.shared
        code.text = compiled.asm["ptx"]
        return code

    return build

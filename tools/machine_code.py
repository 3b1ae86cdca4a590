"""GPU kernels as the hardware gets them, without a GPU: compiles CUDA and Triton for a chip, and
reads what became of them."""

from __future__ import annotations

import importlib
import pkgutil
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from math import prod
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from triton import JITFunction
from triton.backends.compiler import GPUTarget
from triton.runtime.autotuner import Autotuner
from triton.tools.tensor_descriptor import TensorDescriptor

import pspfast.kernels
from pspfast.kernels import launch

ROOT = Path(__file__).parents[1]
_MODULES = [f"pspfast.kernels.{m.name}" for m in pkgutil.iter_modules(pspfast.kernels.__path__)]
LAUNCHERS = [
    module
    for module in map(importlib.import_module, _MODULES)
    if hasattr(module, "wrap_triton") and module is not launch
]
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
# Of a block on chips since sm_90 the system's own, which most cubins count as static.
SYSTEM_SHARED = 1024
DTYPES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float64: "fp64",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.uint8: "u8",
}


def checked(*command: str | Path) -> str:
    """What a program prints.

    Raises:
        RuntimeError: it fails; the message has the command and all that it printed.
    """
    result = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{result.stdout}{result.stderr}")
    return result.stdout


@dataclass(frozen=True)
class MachineCode:
    """A kernel on one chip; sizes in bytes."""

    symbol: str
    arch: int
    registers: int  # of a thread
    threads: int  # of a block
    min_blocks: int  # that its launch bounds promise to a multiprocessor, 0 without a promise
    stack: int
    static_shared: int
    dynamic_shared: int  # of Triton's kernels; those of CUDA have it from their launchers
    tensor_columns: int  # of tensor memory, which sm_100 has
    ptx: str = field(repr=False)
    cubin: bytes = field(repr=False)

    @cached_property
    def name(self) -> str:
        return demangled(self.symbol)

    @property
    def shared(self) -> int:
        return self.static_shared + self.dynamic_shared

    @cached_property
    def sass(self) -> str:
        functions = re.split(r"Function : (\S+)\n", _dump(self.cubin, "-sass"))
        return functions[functions.index(self.symbol) + 1]

    def access_bits(self, instructions: str) -> list[int]:
        """Of each access to memory by these instructions, a regular expression: bits a thread."""
        found = re.findall(rf"\b(?:{instructions})\b(?:\.\w+)*", self.sass)
        widths = [re.search(r"\.[US]?(8|16|64|128|256)\b", instruction) for instruction in found]
        return [int(width[1]) if width else 32 for width in widths]

    @property
    def global_loads(self) -> list[int]:
        """Bits of each, of copies to shared memory too."""
        return self.access_bits("LDG|LDGSTS")

    @property
    def global_stores(self) -> list[int]:
        return self.access_bits("STG")

    @property
    def spill_bytes(self) -> tuple[int, int]:
        """That the code's instructions store to and load from a thread's own memory."""
        return sum(self.access_bits("STL")) // 8, sum(self.access_bits("LDL")) // 8

    @property
    def loops(self) -> list[list[str]]:
        """Instructions from a branch's target to the branch."""
        lines = re.findall(r"/\*([0-9a-f]{4,})\*/ +([^;]*);", self.sass)
        place = {int(at, 16): i for i, (at, _) in enumerate(lines)}
        bodies = []
        for i, (_, line) in enumerate(lines):
            match = re.search(r"\bBRA(?:\.U)? .*?0x([0-9a-f]+)", line)
            if match and (first := place.get(int(match[1], 16), i)) < i:
                bodies.append([code for _, code in lines[first:i]])
        return bodies

    @property
    def innermost_loops(self) -> list[list[str]]:
        """Those without another branch in between."""
        return [body for body in self.loops if not any("BRA" in code for code in body)]

    @property
    def spills_in_loops(self) -> list[str]:
        """Instructions in innermost loops on a thread's own memory."""
        loops = self.innermost_loops if self.stack else []  # To read the code takes seconds.
        return [c for loop in loops for c in loop if re.search(r"\b(?:LDL|STL)\b", c)]

    @property
    def tensor_core_instructions(self) -> list[str]:
        return sorted(set(re.findall(r"\b(?:HMMA|HGMMA|UTC\w*MMA)(?:\.\w+)*", self.sass)))


@cache
def demangled(symbol: str) -> str:
    return checked("c++filt", symbol).strip()


@cache
def _dump(cubin: bytes, what: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return checked(CUOBJDUMP, what, file.name)


def _read(
    cubin: bytes, ptx: str, arch: int, dynamic: int = 0, columns: int = 0
) -> list[MachineCode]:
    entries = dict(re.findall(r"\.entry (\w+)\((.*?)\n\{", ptx, re.DOTALL))
    kernels = []
    for symbol, registers, stack, shared in re.findall(
        r"Function (\S+):\n\s*REG:(\d+) STACK:(\d+) SHARED:(\d+)", _dump(cubin, "-res-usage")
    ):
        threads = re.search(r"\.(?:max|req)ntid (\d+)", entries[symbol])
        assert threads is not None, f"{symbol} has no launch bounds"
        blocks = re.search(r"\.minnctapersm (\d+)", entries[symbol])
        kernels.append(
            MachineCode(
                symbol=symbol,
                arch=arch,
                registers=int(registers),
                threads=int(threads[1]),
                min_blocks=int(blocks[1]) if blocks else 0,
                stack=int(stack),
                static_shared=max(int(shared) - (SYSTEM_SHARED if arch >= 90 else 0), 0),
                dynamic_shared=dynamic,
                tensor_columns=columns,
                ptx=ptx,
                cubin=cubin,
            )
        )
    return kernels


@cache
def nvcc_knows(arch: int) -> bool:
    """Whether there is an nvcc on PATH that compiles for sm_<arch>."""
    nvcc = shutil.which("nvcc")
    return nvcc is not None and f"compute_{arch}" in checked(nvcc, "--list-gpu-arch")


@cache
def compile_cuda(stem: str, arch: int) -> list[MachineCode]:
    """All kernels of ``csrc/cuda/<stem>.cu`` for sm_<arch>."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        flags = ("-std=c++20", "-O3", f"-arch=sm_{arch}", "-DPSPFAST_WITH_CUDA")
        keep = ("--keep", "--keep-dir", folder)
        source, cubin = ROOT / f"csrc/cuda/{stem}.cu", folder / "out.cubin"
        checked("nvcc", *flags, *keep, "-cubin", source, "-o", cubin)
        return _read(cubin.read_bytes(), (folder / f"{stem}.ptx").read_text(), arch)


@dataclass(frozen=True)
class TritonLaunch:
    """A kernel, and its arguments and constants by name."""

    kernel: JITFunction
    args: dict[str, Any]
    options: dict[str, int]
    programs: int | None  # None where tuning decides

    def compiled(self, arch: int) -> MachineCode:
        """As a launch on sm_<arch> compiles it, for pointers to multiples of 16 bytes."""
        compiled = self._compiled(GPUTarget("cuda", arch, 32), enable_fp_fusion=True)
        assets, metadata = compiled.asm, compiled.metadata
        columns = getattr(metadata, "tmem_size", 0)
        (code,) = _read(assets["cubin"], assets["ptx"], arch, metadata.shared, columns)
        return code

    def shared_bytes(self, target: GPUTarget) -> int:
        """Shared memory of a program, as a launch on any chip compiles it."""
        return self._compiled(target).metadata.shared

    def _compiled(self, target: GPUTarget, **more: object) -> Any:
        signature, constants, attributes = {}, {}, {}
        for i, param in enumerate(self.kernel.params):
            arg = self.args[param.name]
            divisible = False
            if isinstance(arg, Tensor):
                signature[param.name], divisible = f"*{DTYPES[arg.dtype]}", True
            elif isinstance(arg, TensorDescriptor):
                box = f"{DTYPES[arg.base.dtype]}{list(arg.block_shape)}"
                signature[param.name] = f"tensordesc<{box}>"
            elif param.is_constexpr or (
                arg == 1 and type(arg) is int and not param.do_not_specialize
            ):
                # Triton compiles a 1 as a constant.
                signature[param.name], constants[(i,)] = "constexpr", arg
            elif isinstance(arg, float):
                signature[param.name] = "fp32"
            else:
                signature[param.name] = "i32" if arg < 2**31 else "i64"
                divisible = arg % 16 == 0 and not param.do_not_specialize
            if divisible:
                attributes[(i,)] = [["tt.divisibility", 16]]
        source = triton.compiler.ASTSource(self.kernel, signature, constants, attributes)
        return triton.compile(source, target=target, options={**more, **self.options})


class Launches:
    """In place of wrap_triton: notes what launchers ask for."""

    def __init__(self) -> None:
        self._noted: list[TritonLaunch] = []

    def __call__(self, kernel: JITFunction | Autotuner) -> Launches._Kernel:
        return self._Kernel(kernel, self._noted)

    @dataclass
    class _Kernel:
        kernel: JITFunction | Autotuner
        noted: list[TritonLaunch]

        def __getitem__(self, grid: tuple[int, ...] | Callable[..., object]) -> Callable[..., None]:
            return partial(self.launch, None if callable(grid) else prod(grid))

        def launch(self, programs: int | None, *args: Any, **constants: Any) -> None:
            kernel = self.kernel
            names = kernel.arg_names[: len(args)]
            by_name = dict(zip(names, args, strict=True)) | constants
            if not isinstance(kernel, Autotuner):
                self.noted.append(TritonLaunch(kernel, by_name, {}, programs))
                return
            for config in kernel.configs:
                options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
                # What the configuration sets in a descriptor is its own.
                own = {
                    name: replace(arg) if isinstance(arg, TensorDescriptor) else arg
                    for name, arg in (by_name | config.kwargs).items()
                }
                if config.pre_hook is not None:
                    config.pre_hook(own)
                self.noted.append(TritonLaunch(kernel.fn, own, options, None))

    def taken(self) -> list[TritonLaunch]:
        """What was noted since the last call; of a kernel that is tuned, all that tuning tries."""
        noted, self._noted[:] = self._noted[:], []
        return noted


@contextmanager
def noted_launches() -> Iterator[Launches]:
    """Within it, Triton's launchers run nothing; their tensors are best on the device meta."""
    launches = Launches()
    with ExitStack() as stack:
        for module in LAUNCHERS:
            stack.enter_context(mock.patch.object(module, "wrap_triton", launches))
        yield launches

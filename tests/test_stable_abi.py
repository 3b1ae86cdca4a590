"""The op library takes from torch only what LibTorch's stable ABI promises of the oldest torch that
it is for, and nothing from Python: that is why one file serves them all."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pspfast import _extension

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads an ELF file")

# What the compiler's runtime brings, weak or of these versions.
RUNTIME = re.compile(r"@(GLIBC|GLIBCXX|CXXABI|GCC)_|^_ITM_|^__gmon_start__$|^_ZNSt|^_ZNKSt")


def output_of(*command: str) -> str:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not there")
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def symbols(kind: str) -> set[str]:
    lines = output_of("nm", "-D", kind, str(_extension.LIBRARY)).splitlines()
    return {line.split()[-1] for line in lines}


@pytest.fixture(scope="module")
def stable() -> set[str]:
    """Functions of the stable ABI of the oldest torch, as the headers of this one declare them."""
    assert _extension.build_info is not None
    major, minor = map(int, _extension.build_info["least_torch"].split("."))
    declarations = output_of(
        "g++",
        "-E",
        "-xc++",
        f"-I{Path(torch.__file__).parent / 'include'}",
        f"-DTORCH_TARGET_VERSION={major << 56 | minor << 48}",
        "-include",
        "torch/csrc/stable/c/shim.h",
        "/dev/null",
    )
    return set(re.findall(r"\b((?:aoti_)?torch_\w+)\s*\(", declarations))


def test_imports_nothing_but_the_stable_abi_and_the_runtime(stable: set[str]) -> None:
    imported = {symbol for symbol in symbols("--undefined-only") if not RUNTIME.search(symbol)}
    assert imported - stable == set()
    assert "torch_call_dispatcher" in imported


def test_newer_functions_are_not_in_the_set(stable: set[str]) -> None:
    assert "torch_get_const_data_ptr" in stable
    assert "torch_library_def_with_tags" not in stable


def test_exports_nothing_of_its_own() -> None:
    # Instances of the C++ library's templates are everybody's.
    exported = {name for name in symbols("--defined-only") if not re.match(r"_Z+N?K?(T.)?St", name)}
    assert exported == set()


def test_needs_no_library_but_libtorch_and_the_runtime() -> None:
    dynamic = output_of("readelf", "-d", str(_extension.LIBRARY))
    needed = set(re.findall(r"NEEDED.*\[(\w+)", dynamic))
    runtime = {"libstdc", "libm", "libgcc_s", "libc", "ld", "libdl", "librt", "libpthread"}
    assert needed - runtime == {"libtorch_cpu"}

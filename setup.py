"""Builds the op library and pspfast._C, which describes it: the CPU kernels, and the CUDA kernels
where nvcc and a CUDA torch are found.

PSPFAST_BUILD=auto|cpu|cuda chooses; `cuda` makes a missing nvcc an error. No GPU is needed.
TORCH_CUDA_ARCH_LIST says for which GPUs, PSPFAST_CUDA_ARCHS=torch takes those of the torch that is
installed, as a wheel for others wants it. PSPFAST_VERSION_LABEL=1 ends the version in +cpu or
+cu13, as it was built.
"""

import os
import re
import shutil
import subprocess
import sys
from glob import glob
from pathlib import Path

import setuptools
from setuptools import Extension, find_packages, setup

# Older ones take the licence in pyproject.toml for an error, in sixty lines.
LEAST_SETUPTOOLS = 77
if int(setuptools.__version__.split(".")[0]) < LEAST_SETUPTOOLS:
    sys.exit(
        f"pspfast: building needs setuptools {LEAST_SETUPTOOLS} or newer, got "
        f"{setuptools.__version__}: run `pip install 'setuptools>={LEAST_SETUPTOOLS}'`, or "
        "`pip install .` without --no-build-isolation."
    )

try:
    import pybind11
    import torch
    from torch.utils import cpp_extension
except ImportError as error:
    sys.exit(
        f"pspfast: building needs torch and pybind11, which could not be imported ({error}): run "
        "`pip install .` without --no-build-isolation, or `pip install torch pybind11 ninja` first."
    )

# The oldest torch that the op library runs with, as pyproject.toml requires it: the first whose
# stable ABI has parallel_for, lists in calls of the dispatcher and pointers that say whether they
# are written through.
LEAST_TORCH = "2.10"
OP_LIBRARY = "pspfast.libpspfast"

# Where no GPU is visible: the GPUs of free notebooks, Ampere, Hopper and Blackwell data-centre
# chips, which others of the same major version follow, with PTX for what comes after.
DEFAULT_CUDA_ARCHS = "7.5 8.0 9.0 10.0+PTX"


def find_cuda_home() -> str | None:
    """The toolkit's root. nvcc itself is asked: the one on PATH can be a wrapper far from it."""
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path=f"{cpp_extension.CUDA_HOME}/bin")
    if nvcc is None:
        return None
    dryrun = subprocess.run([nvcc, "--dryrun", "x.cu"], capture_output=True, text=True).stderr
    tops = [line.split("TOP=", 1)[1] for line in dryrun.splitlines() if "TOP=" in line]
    return str(Path(tops[0]).resolve()) if tops else str(Path(nvcc).resolve().parents[1])


def nvcc_version(cuda_home: str) -> str:
    command = [f"{cuda_home}/bin/nvcc", "--version"]
    output = subprocess.run(command, capture_output=True, text=True).stdout
    return output.split("release ", 1)[1].split(",", 1)[0]


def choose_archs(cuda_home: str) -> str:
    """What TORCH_CUDA_ARCH_LIST has not set: the visible GPUs, or a list for those of others. Of
    either what this nvcc knows, and torch would fail on an empty list."""
    choice = os.environ.get("PSPFAST_CUDA_ARCHS", "auto")
    if choice not in ("auto", "torch"):
        sys.exit(f"pspfast: PSPFAST_CUDA_ARCHS: expected auto or torch, got {choice!r}.")
    if choice == "torch":
        built = re.findall(r"sm_(\d+)(\d)\b", torch._C._cuda_getArchFlags())
        archs = [f"{major}.{minor}" for major, minor in built]
        archs[-1] += "+PTX"
    else:
        gpus = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
        visible = [f"{major}.{minor}" for major, minor in sorted(gpus)]
        archs = known_archs(cuda_home, visible) or DEFAULT_CUDA_ARCHS.split()
    return " ".join(known_archs(cuda_home, archs))


def known_archs(cuda_home: str, archs: list[str]) -> list[str]:
    """Those that the toolkit's nvcc compiles for."""
    command = [f"{cuda_home}/bin/nvcc", "--list-gpu-arch"]
    known = subprocess.run(command, capture_output=True, text=True).stdout.split()
    return [a for a in archs if f"compute_{a.split('+')[0].replace('.', '')}" in known]


def codes_of(flags: list[str]) -> str:
    """What nvcc compiles with these flags: sm_75 is machine code, compute_75 PTX."""
    return " ".join(re.findall(r",code=(\w+)", " ".join(flags)))


def choose_cuda() -> str | None:
    """The CUDA toolkit to build with, or None for a CPU build."""
    choice = os.environ.get("PSPFAST_BUILD", "auto")
    if choice not in ("auto", "cpu", "cuda"):
        sys.exit(f"pspfast: PSPFAST_BUILD: expected auto, cpu or cuda, got {choice!r}.")
    if choice == "cpu":
        return None
    if torch.version.cuda is None:
        problem = f"torch {torch.__version__} is not a CUDA build; install a CUDA build of torch"
    elif (cuda_home := find_cuda_home()) is None:
        problem = (
            "nvcc was not found; install the CUDA toolkit and put nvcc on PATH or set CUDA_HOME"
        )
    elif nvcc_version(cuda_home).split(".")[0] != torch.version.cuda.split(".")[0]:
        problem = (
            f"nvcc is of CUDA {nvcc_version(cuda_home)}, and torch {torch.__version__} of CUDA "
            f"{torch.version.cuda}; install a toolkit of torch's major version"
        )
    else:
        return cuda_home
    if choice == "cuda":
        sys.exit(f"pspfast: PSPFAST_BUILD=cuda, but {problem}.")
    print(f"pspfast: building without CUDA kernels: {problem}.")
    return None


def version_label(cuda_home: str | None) -> str:
    """What tells wheels of one version apart: +cpu, or +cu and CUDA's major version, which is all
    that matters of it: the runtime is in the library, and a driver serves a whole major version."""
    choice = os.environ.get("PSPFAST_VERSION_LABEL", "0")
    if choice not in ("0", "1"):
        sys.exit(f"pspfast: PSPFAST_VERSION_LABEL: expected 0 or 1, got {choice!r}.")
    if choice == "0":
        return ""
    return "+cpu" if cuda_home is None else f"+cu{nvcc_version(cuda_home).split('.')[0]}"


def make_binding(cuda_home: str | None, codes: str) -> Extension:
    """pspfast._C, which says what the op library is built with and for."""
    cuda_macros: list[tuple[str, str | None]] = []
    if cuda_home is not None:
        cuda_macros = [
            ("PSPFAST_WITH_CUDA", None),
            ("PSPFAST_CUDA_VERSION", nvcc_version(cuda_home)),
            ("PSPFAST_CUDA_ARCHS", codes),
        ]
    return Extension(
        "pspfast._C",
        ["csrc/bindings.cpp"],
        include_dirs=[pybind11.get_include()],
        define_macros=[
            ("PSPFAST_TORCH_VERSION", torch.__version__),
            ("PSPFAST_LEAST_TORCH", LEAST_TORCH),
            *cuda_macros,
        ],
        extra_compile_args={"cxx": ["-O3", "-std=c++20", "-fvisibility=hidden"]},
    )


def make_library(cuda_home: str | None) -> Extension:
    """The op library. It stands on LibTorch's stable ABI and knows nothing of Python."""
    sources = {*glob("csrc/*.cpp"), *glob("csrc/cpu/*.cpp")} - {"csrc/bindings.cpp"}
    libraries, library_dirs = ["torch_cpu"], cpp_extension.library_paths()
    cuda_macros: list[tuple[str, str | None]] = []
    if cuda_home is not None:
        cuda_macros = [("PSPFAST_WITH_CUDA", None)]
        sources |= {*glob("csrc/cuda/*.cu")}
        # In the library itself, for it to run beside a torch of any CUDA version.
        libraries += ["cudart_static", "dl", "rt", "pthread"]
        library_dirs += [f"{cuda_home}/lib64", f"{cuda_home}/lib"]
    return Extension(
        OP_LIBRARY,
        sorted(sources),
        depends=sorted(
            glob("csrc/**/*.h", recursive=True)
            + glob("csrc/**/*.inl", recursive=True)
            + glob("csrc/**/*.cuh", recursive=True)
        ),
        include_dirs=cpp_extension.include_paths("cuda" if cuda_home else "cpu"),
        library_dirs=library_dirs,
        libraries=libraries,
        define_macros=[
            ("TORCH_TARGET_VERSION", target_version(LEAST_TORCH)),
            ("TORCH_STABLE_ONLY", None),
            *cuda_macros,
        ],
        # -Wno-psabi: vectors pass only between inlined functions; their calling convention is moot.
        extra_compile_args={
            "cxx": ["-O3", "-std=c++20", "-fvisibility=hidden", "-Wno-psabi"],
            "nvcc": ["-O3", "-std=c++20", "-lineinfo", "-Xcompiler", "-fvisibility=hidden"],
        },
        extra_link_args=["-Wl,--exclude-libs,ALL"] if sys.platform == "linux" else [],
        language="c++",
    )


def target_version(version: str) -> str:
    """A version as TORCH_TARGET_VERSION has it: a byte each for major and minor, six of zero."""
    major, minor = map(int, version.split("."))
    return hex(major << 56 | minor << 48)


class BuildExtension(cpp_extension.BuildExtension):
    """Says in one sentence what is missing before torch's own build starts."""

    def run(self) -> None:
        default = "clang++" if sys.platform == "darwin" else "g++"
        compiler = os.environ.get("CXX", default).split()[0]
        if shutil.which(compiler) is None:
            sys.exit(
                f"pspfast: building needs a C++20 compiler, and {compiler} was not found: "
                "install g++ (Debian: `apt install g++`) or set CXX."
            )
        super().run()

    def get_ext_filename(self, fullname: str) -> str:
        # No interpreter imports the op library, and so its name has none's tag.
        if fullname.split(".")[-1] == OP_LIBRARY.split(".")[-1]:
            return f"{fullname.replace('.', os.sep)}.so"
        return super().get_ext_filename(fullname)


cuda_home = choose_cuda()
codes = ""
if cuda_home is not None:
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", choose_archs(cuda_home))
    # What torch's build passes to nvcc.
    codes = codes_of(cpp_extension._get_cuda_arch_flags())
    # The global that torch builds with; torch's own search takes a wrapped nvcc's folder.
    cpp_extension.CUDA_HOME = cuda_home
print(
    f"pspfast: torch {torch.__version__}, CUDA kernels for {codes} with {cuda_home}"
    if cuda_home
    else f"pspfast: torch {torch.__version__}, CPU kernels only"
)

setup(
    packages=[
        *find_packages(include=["pspfast", "pspfast.*"]),
        "pspfast.kernels",
        "pspfast.kernels.jit",
        "pspfast.kernels.jit.common",
    ],
    package_dir={"pspfast.kernels": "kernels"},
    package_data={
        "pspfast": ["py.typed"],
        "pspfast.data": ["*.yaml"],
        "pspfast.recipes": ["*.yaml"],
    },
    ext_modules=[make_library(cuda_home), make_binding(cuda_home, codes)],
    cmdclass={"build_ext": BuildExtension},
    options={"egg_info": {"tag_build": version_label(cuda_home)}},
)

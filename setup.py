"""Builds pspfast._C: the CPU kernels, and the CUDA kernels where nvcc and a CUDA torch are found.

PSPFAST_BUILD=auto|cpu|cuda chooses; `cuda` makes a missing nvcc an error. No GPU is needed.
"""

import os
import shutil
import subprocess
import sys
from glob import glob
from pathlib import Path

import setuptools
from setuptools import find_packages, setup

# Older ones take the licence in pyproject.toml for an error, in sixty lines.
LEAST_SETUPTOOLS = 77
if int(setuptools.__version__.split(".")[0]) < LEAST_SETUPTOOLS:
    sys.exit(
        f"pspfast: building needs setuptools {LEAST_SETUPTOOLS} or newer, got "
        f"{setuptools.__version__}: run `pip install 'setuptools>={LEAST_SETUPTOOLS}'`, or "
        "`pip install .` without --no-build-isolation."
    )

try:
    import torch
    from torch.utils import cpp_extension
except ImportError as error:
    sys.exit(
        f"pspfast: building needs torch, which could not be imported ({error}): run "
        "`pip install .` without --no-build-isolation, or `pip install torch` first."
    )

# Ampere, Hopper and Blackwell data-centre chips, with PTX for what comes after. Set because torch
# derives the list from the visible GPU, and fails where there is none.
DEFAULT_CUDA_ARCHS = "8.0;9.0;10.0+PTX"


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


def make_extension(cuda_home: str | None) -> cpp_extension.CppExtension:
    sources = sorted(glob("csrc/*.cpp") + glob("csrc/cpu/*.cpp"))
    depends = sorted(
        glob("csrc/**/*.h", recursive=True)
        + glob("csrc/**/*.inl", recursive=True)
        + glob("csrc/**/*.cuh", recursive=True)
    )
    # -Wno-psabi: vectors pass only between inlined functions; their calling convention is moot.
    flags = ["-O3", "-std=c++20", "-fvisibility=hidden", "-Wno-psabi"]
    if "OpenMP" in torch.__config__.parallel_info():
        # at::parallel_for is a header and runs on one thread in a file compiled without OpenMP.
        flags.append("-fopenmp")
    if cuda_home is None:
        return cpp_extension.CppExtension(
            "pspfast._C", sources, depends=depends, extra_compile_args={"cxx": flags}
        )
    archs = os.environ.setdefault("TORCH_CUDA_ARCH_LIST", DEFAULT_CUDA_ARCHS)
    # The global that torch builds with; torch's own search takes a wrapped nvcc's folder.
    cpp_extension.CUDA_HOME = cuda_home
    return cpp_extension.CUDAExtension(
        "pspfast._C",
        sources + sorted(glob("csrc/cuda/*.cu")),
        depends=depends,
        define_macros=[
            ("PSPFAST_WITH_CUDA", None),
            ("PSPFAST_CUDA_VERSION", nvcc_version(cuda_home)),
            ("PSPFAST_CUDA_ARCHS", archs.replace(";", " ")),
        ],
        extra_compile_args={"cxx": flags, "nvcc": ["-O3", "-std=c++20", "-lineinfo"]},
    )


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


cuda_home = choose_cuda()
torch_minor = ".".join(torch.__version__.split(".")[:2])
print(
    f"pspfast: torch {torch.__version__}, CUDA kernels with {cuda_home}"
    if cuda_home
    else f"pspfast: torch {torch.__version__}, CPU kernels only"
)

setup(
    packages=[
        *find_packages(include=["pspfast", "pspfast.*"]),
        "pspfast.kernels",
        "pspfast.kernels.jit",
    ],
    package_dir={"pspfast.kernels": "kernels"},
    package_data={
        "pspfast": ["py.typed"],
        "pspfast.data": ["*.yaml"],
        "pspfast.recipes": ["*.yaml"],
    },
    install_requires=[
        f"torch=={torch_minor}.*",
        "numpy",
        "triton; platform_system == 'Linux'",
    ],
    ext_modules=[make_extension(cuda_home)],
    cmdclass={"build_ext": BuildExtension},
)

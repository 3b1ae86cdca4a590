"""What an installation, a source distribution and a failing build look like."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch

from pspfast import _extension

ROOT = Path(__file__).parents[1]


def test_requires_the_oldest_torch_that_the_op_library_runs_with() -> None:
    assert _extension.build_info is not None
    least = _extension.build_info["least_torch"]
    assert f"torch>={least}" in importlib.metadata.requires("pspfast")
    assert f'"torch>={least}"' in (ROOT / "pyproject.toml").read_text().split("[project]")[0]


def test_installs_one_top_level_package() -> None:
    # Not `files()`, which also reads the list of sources that a build leaves in the checkout.
    record = importlib.metadata.distribution("pspfast").read_text("RECORD") or ""
    files = {line.split(",")[0] for line in record.splitlines()}
    if "pspfast/__init__.py" not in files:
        pytest.skip("an editable installation leaves the files where they are")
    # pip lists the command line script as ../../../bin/pspfast.
    tops = {file.split("/")[0] for file in files} - {".."}
    assert tops == {"pspfast", f"pspfast-{importlib.metadata.version('pspfast')}.dist-info"}
    assert "pspfast/kernels/pyramid_pool.py" in files
    assert "pspfast/py.typed" in files
    assert "pspfast/recipes/ade20k-r50.yaml" in files


@pytest.fixture
def tracked() -> list[str]:
    """The files of the checkout."""
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout
    if not files:
        pytest.skip("not a git checkout")
    return files.split()


@pytest.fixture
def source(tracked: list[str], tmp_path: Path) -> Path:
    """A copy of the checkout, for what a build leaves behind."""
    folder = tmp_path / "source"
    for file in tracked:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, folder / file)
    return folder


def test_installation_holds_the_data_files(
    tracked: list[str], source: Path, tmp_path: Path
) -> None:
    setup(source, "build_py", "--build-lib", str(tmp_path / "built"), PSPFAST_BUILD="cpu")
    wanted = {file for file in tracked if file.startswith("pspfast/")}
    assert {"pspfast/recipes/camvid-r18.yaml", "pspfast/data/ade20k.yaml"} <= wanted
    assert all((tmp_path / "built" / file).is_file() for file in wanted)


def test_source_distribution_holds_all_sources(
    tracked: list[str], source: Path, tmp_path: Path
) -> None:
    # A build without CUDA must ship the CUDA sources all the same.
    setup(source, "sdist", "--dist-dir", str(tmp_path), PSPFAST_BUILD="cpu")
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        held = {name.split("/", 1)[-1] for name in archive.getnames()}
    wanted = {
        file
        for file in tracked
        if file.startswith(("csrc/", "kernels/", "pspfast/", "tests/", "tools/", "benchmarks/"))
    }
    assert wanted <= held
    assert {"setup.py", "pyproject.toml", "README.md", "LICENSE"} <= held


def setup(folder: Path, *args: str, check: bool = True, **environment: str) -> str:
    """Runs setup.py and returns what it printed."""
    result = subprocess.run(
        [sys.executable, "setup.py", *args],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert (result.returncode == 0) == check, result.stderr
    return result.stdout + result.stderr


def test_unknown_kind_of_build() -> None:
    output = setup(ROOT, "--version", check=False, PSPFAST_BUILD="gpu")
    assert output.splitlines()[-1] == (
        "pspfast: PSPFAST_BUILD: expected auto, cpu or cuda, got 'gpu'."
    )


def test_setuptools_too_old(tmp_path: Path) -> None:
    """That of Python 3.11's venv, which --no-build-isolation takes."""
    (tmp_path / "setuptools.py").write_text(
        "__version__ = '65.5.0'\nExtension = find_packages = setup = None\n"
    )
    output = setup(ROOT, "--version", check=False, PYTHONPATH=str(tmp_path))
    assert output == (
        "pspfast: building needs setuptools 77 or newer, got 65.5.0: run "
        "`pip install 'setuptools>=77'`, or `pip install .` without --no-build-isolation.\n"
    )


def test_missing_compiler() -> None:
    output = setup(ROOT, "build_ext", check=False, PSPFAST_BUILD="cpu", CXX="/none/c++")
    assert "needs a C++20 compiler, and /none/c++ was not found: install g++" in output
    assert "Traceback" not in output


@pytest.mark.skipif(torch.version.cuda is None, reason="asks for nvcc with a CUDA torch only")
def test_missing_nvcc(tmp_path: Path) -> None:
    environment = {"PATH": str(tmp_path), "CUDA_HOME": str(tmp_path)}
    output = setup(ROOT, "--version", check=False, PSPFAST_BUILD="cuda", **environment)
    assert "PSPFAST_BUILD=cuda, but nvcc was not found; install the CUDA toolkit" in output
    output = setup(ROOT, "--version", PSPFAST_BUILD="auto", **environment)
    assert "building without CUDA kernels: nvcc was not found" in output


@pytest.mark.skipif(torch.version.cuda is None, reason="asks for nvcc with a CUDA torch only")
def test_nvcc_of_another_major_version(tmp_path: Path) -> None:
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text(
        "#!/bin/sh\n"
        f'[ "$1" = --dryrun ] && echo "#\\$ TOP={tmp_path}" >&2\n'
        'echo "Cuda compilation tools, release 9.2, V9.2.1"\n'
    )
    nvcc.chmod(0o755)
    path = f"{nvcc.parent}:{os.environ['PATH']}"
    output = setup(ROOT, "--version", check=False, PSPFAST_BUILD="cuda", PATH=path)
    assert f"nvcc is of CUDA 9.2, and torch {torch.__version__} of CUDA" in output
    assert "install a toolkit of torch's major version" in output


def codes_of_a_build(**environment: str) -> str:
    """What setup.py says that it builds CUDA kernels for."""
    output = setup(ROOT, "--version", PSPFAST_BUILD="auto", **environment)
    (line,) = [line for line in output.splitlines() if line.startswith("pspfast: torch")]
    if "CUDA kernels for" not in line:
        pytest.skip("there is no nvcc")
    return line.split("CUDA kernels for ")[1].split(" with ")[0]


@pytest.mark.skipif(torch.version.cuda is None, reason="builds CUDA with a CUDA torch only")
def test_architectures_of_a_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.6;9.0a+PTX")
    assert set(codes_of_a_build().split()) == {"sm_86", "sm_90a", "compute_90a"}
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "sitecustomize.py").write_text(
        "import os, torch\n"
        "gpus = [tuple(map(int, c.split('.'))) for c in os.environ['FAKE_GPUS'].split()]\n"
        "torch.cuda.device_count = lambda: len(gpus)\n"
        "torch.cuda.get_device_capability = gpus.__getitem__\n"
    )
    # One that no nvcc knows gets what machines without a GPU get.
    default = set(codes_of_a_build(FAKE_GPUS="99.0").split())
    assert {"sm_75", "sm_80", "sm_90"} <= default
    assert any(code.startswith("compute_") for code in default)
    assert set(codes_of_a_build(FAKE_GPUS="9.0 8.0 9.0").split()) == {"sm_80", "sm_90"}
    own = codes_of_a_build(FAKE_GPUS="8.0", PSPFAST_CUDA_ARCHS="torch").split()
    torch_own = torch._C._cuda_getArchFlags().split()
    machine_code = [{code for code in codes if code[:3] == "sm_"} for codes in (own, torch_own)]
    assert machine_code[0] == machine_code[1] and f"compute_{torch_own[-1][3:]}" in own
    output = setup(ROOT, "--version", check=False, FAKE_GPUS="", PSPFAST_CUDA_ARCHS="all")
    assert "PSPFAST_CUDA_ARCHS: expected auto or torch, got 'all'." in output

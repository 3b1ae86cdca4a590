"""Python started in a clone finds the source folder first, which has no compiled library."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import pspfast
from pspfast import _source_folder


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with the sources of the package and nothing compiled."""
    for source in Path(pspfast.__path__[0]).rglob("*.py"):
        copy = tmp_path / "pspfast" / source.relative_to(pspfast.__path__[0])
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, copy)
    return tmp_path


def run(*arguments: str, cwd: Path) -> tuple[str, str]:
    command = [sys.executable, *arguments]
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=True)
    return result.stdout, result.stderr


def test_installed_package_is_used_in_a_clone(clone: Path) -> None:
    out, err = run("-m", "pspfast", "info", cwd=clone)
    assert "cpu tensors  cpu\n" in out
    assert err.count("is a source folder without a compiled library") == 1
    assert f"{clone / 'pspfast'} is" in err
    assert f"installed in {pspfast.__path__[0]} is used" in err


def test_all_modules_are_of_one_package(clone: Path) -> None:
    code = (
        "import sys, pspfast, pspfast.cli, pspfast.kernels\n"
        "print({m.__file__ for n, m in sys.modules.items() if n.startswith('pspfast.')})"
    )
    out, _ = run("-c", code, cwd=clone)
    assert out.count(str(clone)) == 1
    assert str(clone / "pspfast/_source_folder.py") in out


def test_a_built_source_folder_serves_itself(clone: Path, recwarn: pytest.WarningsRecorder) -> None:
    folder = clone / "pspfast"
    (folder / f"_C{_source_folder.EXTENSION_SUFFIXES[0]}").touch()
    assert _source_folder.built_path([str(folder)]) == [str(folder)]
    assert not recwarn


def test_without_an_installation_the_source_folder_stays(
    clone: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setattr(sys, "meta_path", [])
    assert _source_folder.built_path([str(clone / "pspfast")]) == [str(clone / "pspfast")]
    assert not recwarn

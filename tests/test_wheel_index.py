"""The index of released wheels, as pip reads it."""

import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tools.release.wheel_index import write_index

INFO = "Metadata-Version: 2.1\nName: pspfast\nVersion: {version}\n"


def asset(folder: Path, version: str) -> dict[str, str]:
    """A wheel that holds nothing, as GitHub lists it."""
    wheel = folder / f"pspfast-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        info = f"pspfast-{version}.dist-info"
        archive.writestr(f"{info}/METADATA", INFO.format(version=version))
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    digest = f"sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}"
    return {"name": wheel.name, "browser_download_url": wheel.as_uri(), "digest": digest}


def release(*assets: dict[str, str], draft: bool = False) -> dict[str, object]:
    return {"draft": draft, "assets": [*assets, {"name": "pspfast-0.2.0.tar.gz"}]}


def download(index: Path, to: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    pip = (sys.executable, "-m", "pip", "--isolated", "download", "--no-deps", "--no-cache-dir")
    where = ("--index-url", index.as_uri(), "-d", str(to))
    return subprocess.run([*pip, *where, *arguments, "pspfast"], capture_output=True, text=True)


def test_pip_finds_the_newest_wheel_of_a_label(tmp_path: Path) -> None:
    cpu, old, new = (asset(tmp_path, f"0.{v}") for v in ("1.0+cpu", "1.0+cu13", "2.0+cu13"))
    draft = release(asset(tmp_path, "0.3.0+cu13"), draft=True)
    assert write_index([[draft, release(new)], [release(cpu, old)]], tmp_path / "whl") == [
        "cpu",
        "cu13",
    ]
    for label, version in (("cpu", "0.1.0+cpu"), ("cu13", "0.2.0+cu13")):
        result = download(tmp_path / "whl" / label, tmp_path / label)
        assert result.returncode == 0, result.stderr
        (wheel,) = (tmp_path / label).iterdir()
        assert wheel.name == f"pspfast-{version}-py3-none-any.whl"


def test_pip_refuses_a_wheel_of_another_checksum(tmp_path: Path) -> None:
    changed = {**asset(tmp_path, "0.1.0+cpu"), "digest": f"sha256:{'0' * 64}"}
    write_index([[release(changed)]], tmp_path / "whl")
    result = download(tmp_path / "whl/cpu", tmp_path / "got")
    assert result.returncode != 0 and "DO NOT MATCH THE HASHES" in result.stderr


def test_without_wheels_or_checksum(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected wheels among their assets, got none"):
        write_index([[release()]], tmp_path / "whl")
    releases = tmp_path / "releases.json"
    releases.write_text(json.dumps([[release({**asset(tmp_path, "0.1.0+cpu"), "digest": ""})]]))
    command = (sys.executable, "-m", "tools.release.wheel_index", releases, tmp_path / "whl")
    result = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert result.returncode == 2
    assert "pspfast-0.1.0+cpu-py3-none-any.whl: digest: expected sha256:…, got ''" in result.stderr
    assert not (tmp_path / "whl").exists()

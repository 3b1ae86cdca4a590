"""Processes that are killed, disks that are full: what is there goes on bit for bit."""

import errno
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pspfast import files
from pspfast.config import Config
from pspfast.training.checkpoints import list_checkpoints, load_checkpoint
from pspfast.training.log import read_log
from pspfast.training.trainer import train

# Trains with a YAML file, and kills its own process in the n-th call of a function; of those that
# write, calls for checkpoints count.
DRIVER = """
import builtins, os, signal, sys
from pathlib import Path
import torch, yaml
from accelerate import Accelerator
from pspfast import files
from pspfast.config import Config
from pspfast.training.trainer import train

torch.set_num_threads(1)
_, config, place, last = sys.argv
calls = 0

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def counted():
    global calls
    calls += 1
    return calls == int(last)

def before(owner, name, counts):
    original = getattr(owner, name)
    def replacement(*args, **kwargs):
        if counts(*args) and counted():
            die()
        return original(*args, **kwargs)
    setattr(owner, name, replacement)

def is_checkpoint(file):
    name = os.readlink(f"/proc/self/fd/{file}") if isinstance(file, int) else str(file)
    return Path(name).name.startswith("checkpoint-")

class HalfWritten:
    def __init__(self, path):
        self.file = open(path, "wb", buffering=0)
    def __enter__(self):
        return self
    def __exit__(self, *_):
        pass
    def write(self, content):
        self.file.write(content[: len(content) // 2])
        die()

if place == "step":
    before(Accelerator, "backward", lambda *args: True)
elif place == "write":
    files.open = lambda path, mode: (
        HalfWritten(path) if is_checkpoint(path) and counted() else builtins.open(path, mode)
    )
elif place == "fsync":
    before(os, "fsync", is_checkpoint)
elif place == "replace":
    before(os, "replace", lambda old, new: is_checkpoint(new))
elif place == "named":
    # The first thing after a file has its name.
    names = []
    replace = os.replace
    os.replace = lambda old, new: (names.append(new), replace(old, new))
    before(files, "_sync_folder", lambda folder: is_checkpoint(names[-1]))
elif place == "unlink":
    before(Path, "unlink", lambda path, **_: is_checkpoint(path) and path.suffix != ".tmp")
train(Config.from_dict(yaml.safe_load(Path(config).read_text())))
"""


@pytest.mark.parametrize(
    ("place", "call", "resumes_at"),
    [
        ("step", 2, None),
        ("write", 1, None),
        ("step", 5, 3),
        ("write", 2, 3),
        ("fsync", 2, 3),
        ("replace", 2, 3),
        ("named", 2, 6),
        ("unlink", 1, 6),
    ],
)
def test_killed_process_continues_bit_for_bit(
    config: Config,
    finished_run: Path,
    tmp_path: Path,
    place: str,
    call: int,
    resumes_at: int | None,
) -> None:
    config.train.resume = "auto"
    config.train.keep_checkpoints = 1 if place == "unlink" else 2
    (tmp_path / "driver.py").write_text(DRIVER)
    config.save(tmp_path / "config.yaml")
    killed = subprocess.run(
        [sys.executable, "driver.py", "config.yaml", place, str(call)],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    folder = Path(config.train.output)
    found = list_checkpoints(folder)
    assert (load_checkpoint(found[-1])["epoch"] * 3 if found else None) == resumes_at

    # Of a checkpoint between epochs, which no later one replaces.
    (folder / "checkpoint-00000004.safetensors.tmp").touch()
    train(config)
    assert_same_weights(folder, finished_run)
    assert [record["epoch"] for record in read_log(folder)] == [1, 2]
    assert not list(folder.glob("*.tmp"))


def assert_same_weights(folder: Path, expected: Path) -> None:
    got, want = (load_checkpoint(list_checkpoints(f)[-1]) for f in (folder, expected))
    for entry in ("model", "momentum"):
        assert got[entry].keys() == want[entry].keys()
        for name, value in want[entry].items():
            assert torch.equal(got[entry][name], value), name


@pytest.mark.parametrize("call", ["write", "flush"])
def test_full_disk_keeps_the_checkpoint_before(
    config: Config, finished_run: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    folder = Path(config.train.output)
    with monkeypatch.context() as patch:
        fill_disk(patch, call, "checkpoint-00000006")
        with pytest.raises(OSError, match=r"No space left.*checkpoint-00000006") as full:
            train(config)
    assert full.value.errno == errno.ENOSPC
    assert [path.name for path in list_checkpoints(folder)] == ["checkpoint-00000003.safetensors"]
    assert not list(folder.glob("*.tmp"))
    config.train.resume = "auto"
    train(config)
    assert_same_weights(folder, finished_run)


def fill_disk(patch: pytest.MonkeyPatch, call: str, name: str) -> None:
    """Half of a file fits, as the given call on it finds out."""

    def fail(file: io.FileIO, content: bytes = b"") -> None:
        io.FileIO.write(file, content[: len(content) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    full = type("Full", (io.FileIO,), {call: fail})
    patch.setattr(
        files,
        "open",
        lambda path, mode: (full if path.name.startswith(name) else open)(path, mode),
        raising=False,
    )

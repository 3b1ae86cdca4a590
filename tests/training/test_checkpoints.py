"""Writing whole files, and refusing wrong ones."""

import os
import pickle
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from pspfast.files import atomic_open
from pspfast.model_files import load_model, save_weights
from pspfast.training.checkpoints import (
    checkpoint_path,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
)


def test_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="disk"), atomic_open(path) as file:
        file.write(b"half of the n")
        file.flush()
        raise OSError("disk full")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    with atomic_open(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


STATE = {
    "model": {"layer.0.weight": torch.arange(6.0).view(2, 3), "count": torch.tensor(3)},
    "momentum": {"layer.0.weight": torch.full((2, 3), 0.1, dtype=torch.bfloat16)},
    "random": {"0/cpu": torch.arange(5, dtype=torch.uint8)},
    "config": {"train": {"lr": 0.1}},
    "best_mIoU": None,
    "epoch": 2,
}


def save(folder: Path, *iterations: int, keep: int = 9, keep_multiple: int = 0) -> list[int]:
    """Writes checkpoints, and returns the iterations of those that are there then."""
    for iteration in iterations:
        save_checkpoint(checkpoint_path(folder, iteration), STATE, keep, keep_multiple)
    return [int(path.stem.split("-")[1]) for path in list_checkpoints(folder)]


def test_checkpoint_comes_back(tmp_path: Path) -> None:
    save(tmp_path, 7)
    state = load_checkpoint(checkpoint_path(tmp_path, 7))
    assert state.keys() == STATE.keys()
    for entry in ("config", "best_mIoU", "epoch"):
        assert state[entry] == STATE[entry]
    for entry in ("model", "momentum", "random"):
        assert state[entry].keys() == STATE[entry].keys()
        for name, value in STATE[entry].items():
            torch.testing.assert_close(state[entry][name], value, rtol=0, atol=0)


def test_failed_checkpoint_keeps_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)

    def stop(file: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", stop)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 2, keep=1)
    assert list(tmp_path.iterdir()) == [checkpoint_path(tmp_path, 1)]


def test_oldest_checkpoints_go(tmp_path: Path) -> None:
    assert save(tmp_path, 9, 10, 100, keep=2) == [10, 100]
    assert save(tmp_path, 101, keep=1) == [101]


def test_every_kth_checkpoint_stays(tmp_path: Path) -> None:
    assert save(tmp_path, *range(2, 18, 2), keep=2, keep_multiple=6) == [6, 12, 14, 16]


def test_checkpoints_of_an_abandoned_end_go(tmp_path: Path) -> None:
    """When a run went back to an earlier one, and not before it has written its own."""
    save(tmp_path, 10, 20, 30)
    assert save(tmp_path, 12, keep=2) == [10, 12]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.data())
def test_any_flipped_bit_is_found(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder), 7)
        path = checkpoint_path(Path(folder), 7)
        content = bytearray(path.read_bytes())
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(content)
        with pytest.raises(ValueError, match=path.name):
            load_checkpoint(path)


def test_damaged_checkpoint_names_the_whole_one_before_it(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3)
    first, second, third = list_checkpoints(tmp_path)
    for damaged, advice in (
        (third, f"before it: --train.resume {second}"),
        (second, f"before it: --train.resume {first}"),
        (first, "there is no whole checkpoint before it"),
    ):
        content = damaged.read_bytes()
        damaged.write_bytes(content[:-1] + bytes([content[-1] ^ 0xFF]))
        with pytest.raises(ValueError, match=f"{damaged}: damaged.*CRC-32.*{advice}"):
            load_checkpoint(damaged)
    with pytest.raises(ValueError, match=f"{third}.*there is no whole checkpoint"):
        load_checkpoint(third)


def test_model_loads_without_the_weights_it_started_from(
    finished_run: Path, tmp_path: Path
) -> None:
    trained = load_model(finished_run / "final.safetensors")
    trained.config.model.pretrained = "gone.pth"
    path = tmp_path / "model.safetensors"
    save_weights(path, trained.model.state_dict(), trained.config, trained.class_list, {})
    assert load_model(path).class_list == trained.class_list


@pytest.mark.parametrize("name", ["missing.safetensors", "missing"])
def test_missing_checkpoint(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError, match=name):
        load_model(tmp_path / name)


@pytest.mark.parametrize("name", ["final.safetensors", "checkpoint-00000006.safetensors"])
def test_truncated_checkpoint(finished_run: Path, tmp_path: Path, name: str) -> None:
    content = (finished_run / name).read_bytes()
    for length, message in (
        (0, "expected a file of weights, got an empty file"),
        (10, "expected a file of weights, got a safetensors file that was cut"),
        (len(content) // 2, "not a readable safetensors file"),
        (len(content) - 1, "not a readable safetensors file"),
    ):
        (tmp_path / name).write_bytes(content[:length])
        with pytest.raises(ValueError, match=f"{name}: {message}"):
            load_model(tmp_path / name)


def test_foreign_files(finished_run: Path, tmp_path: Path) -> None:
    save_file({"w": torch.zeros(2)}, tmp_path / "other.safetensors")
    torch.save({"w": torch.zeros(2)}, tmp_path / "other.pt")
    for name in ("other.safetensors", "other.pt"):
        with pytest.raises(
            ValueError, match=f"{name}: expected weights of a PSPNet .* got 1 tensors"
        ):
            load_model(tmp_path / name)
    with pytest.raises(ValueError, match=r"final\.safetensors: not a checkpoint of a run"):
        load_checkpoint(finished_run / "final.safetensors")


def test_nothing_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise AssertionError("unpickled")

    save(tmp_path, 1)
    for owner, name in ((torch, "load"), (pickle, "load"), (pickle, "loads")):
        monkeypatch.setattr(owner, name, fail)
    load_checkpoint(checkpoint_path(tmp_path, 1))

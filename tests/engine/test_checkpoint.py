"""Writing whole files, and refusing wrong ones."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pspfast.engine.checkpoint import (
    atomic_open,
    list_checkpoints,
    load_checkpoint,
    random_state,
    save_checkpoint,
    set_random_state,
)
from pspfast.engine.weights import load_model, save_weights


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


def test_failed_checkpoint_keeps_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {"model": {}, "config": {}, "taxonomy": {}}
    first = tmp_path / "checkpoint-00000001.pt"
    save_checkpoint(first, state, keep=1)

    def fail(state: object, file: object) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path / "checkpoint-00000002.pt", state, keep=1)
    assert list(tmp_path.iterdir()) == [first]
    assert load_checkpoint(first) == state


def test_oldest_checkpoints_go(tmp_path: Path) -> None:
    state = {"model": {}, "config": {}, "taxonomy": {}}
    paths = [tmp_path / f"checkpoint-{iteration:08d}.pt" for iteration in (9, 10, 100)]
    for path in paths:
        save_checkpoint(path, state, keep=2)
    assert list_checkpoints(tmp_path) == paths[1:]


def test_random_state_comes_back() -> None:
    state = random_state()
    expected = torch.rand(5)
    set_random_state(state)
    assert torch.equal(torch.rand(5), expected)


def test_model_loads_without_the_weights_it_started_from(
    finished_run: Path, tmp_path: Path
) -> None:
    trained = load_model(finished_run / "final.safetensors")
    trained.config.model.pretrained = "gone.pth"
    path = tmp_path / "model.safetensors"
    save_weights(path, trained.model.state_dict(), trained.config, trained.taxonomy, {})
    assert load_model(path).taxonomy == trained.taxonomy


@pytest.mark.parametrize("name", ["missing.safetensors", "missing.pt"])
def test_missing_checkpoint(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError, match=name):
        load_model(tmp_path / name)


@pytest.mark.parametrize("name", ["final.safetensors", "checkpoint-00000006.pt"])
def test_truncated_checkpoint(finished_run: Path, tmp_path: Path, name: str) -> None:
    content = (finished_run / name).read_bytes()
    for length in (0, 10, len(content) // 2):
        (tmp_path / name).write_bytes(content[:length])
        with pytest.raises(ValueError, match=f"{name}: not a readable"):
            load_model(tmp_path / name)


def test_foreign_files(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(2)}, tmp_path / "other.safetensors")
    torch.save({"w": torch.zeros(2)}, tmp_path / "other.pt")
    (tmp_path / "text.pt").write_text("not a checkpoint at all")
    for name, message in (
        ("other.safetensors", "not written by pspfast train"),
        ("other.pt", "not a checkpoint of pspfast train"),
        ("text.pt", "not a readable checkpoint"),
    ):
        with pytest.raises(ValueError, match=f"{name}: {message}"):
            load_model(tmp_path / name)

"""Runs that are stopped and continued."""

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from small_runs import assert_same_result, variant
from torch import Tensor

from pspfast.config import Config
from pspfast.training.checkpoints import list_checkpoints, load_checkpoint
from pspfast.training.interrupt import TrainingInterrupted
from pspfast.training.log import read_log
from pspfast.training.run_state import RunState
from pspfast.training.trainer import Trainer, train


def interrupt(patch: pytest.MonkeyPatch, owner: type, name: str, call: int, times: int = 1) -> None:
    """Sends Ctrl-C to this process in the given call of a method."""
    original = getattr(owner, name)
    calls = []

    def method(self: Any, *args: Any) -> Any:
        calls.append(None)
        if len(calls) == call:
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)
        return original(self, *args)

    patch.setattr(owner, name, method)


@pytest.mark.parametrize(
    ("owner", "method", "call", "position"),
    [
        (Accelerator, "backward", 2, (0, 2)),
        (Accelerator, "backward", 3, (0, 3)),
        (Trainer, "validate", 1, (0, 3)),
        (RunState, "save", 1, (1, 0)),
    ],
    ids=["mid-epoch", "last step", "validation", "epoch boundary"],
)
def test_interrupted_run_continues_bit_for_bit(
    config: Config,
    finished_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: type,
    method: str,
    call: int,
    position: tuple[int, int],
) -> None:
    config = variant(config, resume="auto")
    with monkeypatch.context() as patch:
        interrupt(patch, owner, method, call)
        with pytest.raises(TrainingInterrupted) as stopped:
            train(config)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    state = load_checkpoint(stopped.value.checkpoint)
    assert (state["epoch"], state["step"]) == position
    assert stopped.value.resume.endswith("config.yaml --train.resume auto")

    torch.manual_seed(99)
    train(config)
    folder = Path(config.train.output)
    assert_same_result(folder, finished_run)
    records = read_log(folder)
    assert [record["epoch"] for record in records] == [1, 2]
    assert all("mIoU" in record and "loss" in record for record in records)


def test_killed_run_continues_from_its_last_checkpoint(
    config: Config, finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, Accelerator, "backward", 6, times=2)
        with pytest.raises(KeyboardInterrupt) as stopped:
            train(config)
        assert not isinstance(stopped.value, TrainingInterrupted)
    folder = Path(config.train.output)
    assert [path.name for path in list_checkpoints(folder)] == ["checkpoint-00000003.safetensors"]
    assert not list(folder.glob("*.tmp"))
    train(variant(config, resume=str(folder / "checkpoint-00000003.safetensors")))
    assert_same_result(folder, finished_run)


def test_signal_to_the_workers_too(
    config: Config,
    finished_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """As terminals and job schedulers do it; and samples from a worker are the same."""
    config = variant(variant(config, "data", workers=1), resume="auto")
    original = Accelerator.backward

    def backward(self: Accelerator, loss: Tensor) -> None:
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGINT)
            os.kill(child.pid, signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        original(self, loss)

    with monkeypatch.context() as patch:
        patch.setattr(Accelerator, "backward", backward)
        with pytest.raises(TrainingInterrupted):
            train(config)
    assert capfd.readouterr().err.count("stopping after this step") == 1
    train(config)
    assert_same_result(Path(config.train.output), finished_run)

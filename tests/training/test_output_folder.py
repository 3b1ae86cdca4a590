"""A run touches what is its own, and nothing else in its folder."""

import json
import math
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_runs import variant

from pspfast.config import Config
from pspfast.files import atomic_open
from pspfast.model_files import load_model
from pspfast.training.checkpoints import list_checkpoints
from pspfast.training.lock import lock_folder
from pspfast.training.log import RunLog, read_log
from pspfast.training.trainer import Trainer, train

NAMES = ("checkpoint-00000001 (copy).safetensors", "checkpoint-best.safetensors", "notes.tmp")


def test_files_of_others_stay(config: Config) -> None:
    folder = Path(config.train.output)
    folder.mkdir()
    for name in NAMES:
        (folder / name).write_text("mine")
    config = variant(config, keep_checkpoints=1, save_every=1)
    train(config)
    assert [path.name for path in list_checkpoints(folder)] == ["checkpoint-00000006.safetensors"]
    train(variant(config, resume="auto"))
    train(variant(config, overwrite=True))
    assert all((folder / name).read_text() == "mine" for name in NAMES)


def test_leftovers_of_another_run_are_not_taken_for_its_own(
    config: Config, finished_run: Path
) -> None:
    folder = Path(config.train.output)
    folder.mkdir()
    (folder / "best.safetensors").write_bytes((finished_run / "best.safetensors").read_bytes())
    with pytest.raises(ValueError, match="already holds a run"):
        train(config)
    assert (folder / "best.safetensors").exists()
    train(variant(config, overwrite=True, epochs=1, eval_every=9))
    assert load_model(folder / "best.safetensors").config.train.epochs == 1


def test_links_are_replaced_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("kept")
    for name in ("file", "file.tmp"):
        (tmp_path / name).symlink_to(target)
    with atomic_open(tmp_path / "file") as file:
        file.write(b"new")
    assert target.read_text() == "kept"
    assert not (tmp_path / "file").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"new"


HOLD = """
import sys
from pathlib import Path
from pspfast.training.lock import lock_folder
lock = lock_folder(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.readline()
"""


def test_second_run_in_a_folder_is_refused(config: Config) -> None:
    folder = Path(config.train.output)
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert first.stdout is not None and first.stdout.readline() == "held\n"
        message = f"train.output: another run is writing to {folder}"
        for options in ({}, {"resume": "auto"}, {"overwrite": True}):
            with pytest.raises(ValueError, match=message):
                train(variant(config, **options))
        assert [path.name for path in folder.iterdir()] == [".lock"]
    finally:
        first.kill()
        first.wait()
    # A dead process holds nothing.
    train(config)
    lock_folder(folder).release()


def test_log_is_strict_json(tmp_path: Path) -> None:
    log = RunLog(tmp_path, 0)
    record = {"epoch": 1, "iteration": 3, "loss": 0.5, "mIoU": math.nan, "top": math.inf}
    log.epoch(record)
    log.close()

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    (line,) = (tmp_path / "log.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=refuse)["mIoU"] is None
    (read,) = read_log(tmp_path)
    assert math.isnan(read["mIoU"]) and read["loss"] == 0.5


@pytest.mark.parametrize("line", ["{", "[1]", "{}", '{"epoch": 1'])
def test_damaged_log_is_named_with_its_line(tmp_path: Path, line: str) -> None:
    (tmp_path / "log.jsonl").write_text(f'{{"epoch": 1, "iteration": 1}}\n{line}\n')
    with pytest.raises(ValueError, match=r"log\.jsonl, line 2: not a record of an epoch"):
        read_log(tmp_path)


def test_a_thread_may_train(config: Config) -> None:
    problems: list[BaseException] = []

    def work() -> None:
        try:
            train(variant(config, epochs=1))
        except BaseException as problem:
            problems.append(problem)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not problems
    assert (Path(config.train.output) / "final.safetensors").exists()


def test_validation_before_training(config: Config) -> None:
    from pspfast.labelled_data import choose_class_list
    from pspfast.training.data import make_train_set, make_val_set

    train_set, val_set = make_train_set(config, 3), make_val_set(config.data, 3)
    assert val_set is not None
    trainer = Trainer(config, train_set, val_set, choose_class_list(3))
    scores = trainer.validate(val_set)
    assert 0 <= scores.pixel_accuracy <= 1


def test_training_starts_from_trained_weights(config: Config, finished_run: Path) -> None:
    trained = finished_run / "best.safetensors"
    config = replace(config, model=replace(config.model, weights=str(trained)))
    train(variant(config, epochs=1, lr=0.0))
    folder = Path(config.train.output)
    got, expected = (
        load_model(f).model.state_dict() for f in (folder / "final.safetensors", trained)
    )
    for name, value in expected.items():
        if "running" not in name and "num_batches" not in name:
            assert torch.equal(got[name], value), name


def test_classifiers_of_other_classes_start_anew(config: Config, finished_run: Path) -> None:
    trained = finished_run / "best.safetensors"
    config = replace(
        config,
        model=replace(config.model, weights=str(trained)),
        data=replace(config.data, classes=4),
    )
    with pytest.warns(UserWarning, match=r"has 3 classes, this network 4: layers that start anew"):
        train(variant(config, epochs=1, lr=0.0))
    folder = Path(config.train.output)
    got, expected = (
        load_model(f).model.state_dict() for f in (folder / "final.safetensors", trained)
    )
    assert torch.equal(got["layer4.0.conv1.weight"], expected["layer4.0.conv1.weight"])
    assert got["cls.4.weight"].shape[0] == 4
    # Continuing needs the file no longer.
    gone = replace(config, model=replace(config.model, weights=str(trained)))
    train(variant(gone, epochs=2, resume="auto"))


def test_other_widths_are_refused(config: Config, finished_run: Path) -> None:
    trained = str(finished_run / "best.safetensors")
    model = replace(config.model, weights=trained, head_channels=16)
    with pytest.raises(
        ValueError, match=r"^model\.weights: .* is of another network; .*cls\.0\.weight"
    ):
        train(replace(config, model=model))

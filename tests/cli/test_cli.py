"""The command: what it says and how it exits."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

from pspfast.cli import main
from pspfast.config import Config
from pspfast.training.checkpoints import list_checkpoints, load_checkpoint


def failure(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The error message of a command that must exit with 2."""
    with pytest.raises(SystemExit) as stop:
        main(args)
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message


@pytest.fixture
def config_file(config: Config, tmp_path: Path) -> str:
    config.save(tmp_path / "config.yaml")
    return str(tmp_path / "config.yaml")


@pytest.mark.parametrize("command", ["train", "eval", "predict", "demo", "app"])
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert f"usage: pspfast {command}" in capsys.readouterr().out


def test_train_help_explains_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "--train.head_lr_factor" in text
    assert "Factor on lr for the pyramid" in text


def test_train_eval_predict(
    config_file: str, config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["train", "--config", config_file, "--train.epochs", "1", "--augment.crop_size=[25,33]"])
    run = Path(config.train.output)
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert (saved["train"]["epochs"], saved["augment"]["crop_size"]) == (1, [25, 33])
    assert str(run) in capsys.readouterr().out

    checkpoint = str(run / "best.safetensors")
    root = Path(config.data.root)
    main(["eval", "--checkpoint", checkpoint, "--list", str(root / "val.txt"), "--workers=0"])
    assert "| class_2 |" in capsys.readouterr().out

    image = str(root / "images" / "1.png")
    main(["predict", image, "--checkpoint", checkpoint, "--output", str(tmp_path / "out")])
    assert Image.open(tmp_path / "out" / "1_overlay.png").size == Image.open(image).size
    assert "1_overlay.png" in capsys.readouterr().out


def test_wrong_files_are_named(
    config_file: str, config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(config.data.root)
    image, label = root / "images" / "0.png", root / "labels" / "0.png"
    (tmp_path / "truncated.png").write_bytes(image.read_bytes()[:500])
    (tmp_path / "text.png").write_text("no image")
    Image.open(label).resize((7, 9)).save(tmp_path / "small.png")
    Image.open(label).point(lambda value: value + 7).save(tmp_path / "ids.png")
    for sample, named in (
        (f"{tmp_path}/missing.png {label}", "missing.png"),
        (f"{tmp_path}/truncated.png {label}", "truncated.png"),
        (f"{tmp_path}/text.png {label}", "text.png"),
        (f"{image} {tmp_path}/small.png", "small.png"),
        (f"{image} {tmp_path}/ids.png", "ids.png"),
        ("", "list.txt"),
    ):
        (tmp_path / "list.txt").write_text(sample)
        args = ["train", "--config", config_file, "--data.train_list", str(tmp_path / "list.txt")]
        assert named in failure(args, capsys)
    assert not Path(config.train.output).exists()


def test_wrong_options(
    config_file: str, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "typo.yaml").write_text("train: {epoch: 3}\n")
    checkpoint = str(finished_run / "best.safetensors")
    train = ["train", "--config", config_file]
    for args, said in (
        (["train", "--config", str(tmp_path / "typo.yaml")], "epoch"),
        (["train", "--config", str(tmp_path / "none.yaml")], "none.yaml"),
        (["train"], "expected train_list or train_images"),
        ([*train, "--train.epochs", "0"], "train.epochs: expected at least 1, got 0"),
        ([*train, "--train.epochs", "many"], "many"),
        ([*train, "--data.classes", "cats"], "expected one of ['ade20k', 'camvid', 'cityscapes'"),
        ([*train, "--data.classes", "2"], "valid ids are 0 to 1"),
        ([*train, "--train.resume", str(tmp_path / "none.pt")], "none.pt"),
        (["predict", "a.png", "--checkpoint", str(tmp_path / "none.pt")], "none.pt"),
        (["predict", "no.png", "--checkpoint", checkpoint], "no.png"),
        (["predict", "--checkpoint", checkpoint], "predict.inputs"),
        (
            ["eval", "--checkpoint", checkpoint],
            "expected one of --list, --images with --labels, and --source",
        ),
        (["eval", "--checkpoint", checkpoint, "--list", "none.txt"], "none.txt"),
        (["fly"], "fly"),
    ):
        assert said in failure(args, capsys), args


def test_missing_extra_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "jsonargparse", None)
    assert "pip install 'pspfast[train]'" in failure(["train"], capsys)
    main(["info"])
    assert "pspfast" in capsys.readouterr().out


def test_library_does_not_import_the_training_half() -> None:
    check = (
        "import sys, pspfast\n"
        "heavy = {'pspfast.config', 'pspfast.training', 'pspfast.data', 'torchvision', "
        "'accelerate', 'jsonargparse'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", check], check=True)


def test_ctrl_c_leaves_a_checkpoint(config_file: str, config: Config) -> None:
    args = ["train", "--config", config_file, "--train.epochs", "1000", "--data.workers", "1"]
    run = Path(config.train.output)
    process = subprocess.Popen(
        [sys.executable, "-m", "pspfast", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    try:
        # The line of the first epoch says that it trains.
        assert process.stdout.readline().startswith("epoch 1 ")
        # As a terminal does: to the process and its workers.
        os.killpg(process.pid, signal.SIGINT)
        output, message = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, output + message
    assert "Traceback" not in message
    assert f"pspfast train --config {run}/config.yaml --train.resume auto" in message
    checkpoint = list_checkpoints(run)[-1]
    assert str(checkpoint) in message
    state = load_checkpoint(checkpoint)
    assert 3 * state["epoch"] + state["step"] == int(checkpoint.stem.split("-")[1])
    assert not list(run.glob("*.tmp"))

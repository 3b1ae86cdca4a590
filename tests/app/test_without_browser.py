"""The parts of ``pspfast app`` that need no browser."""

import socket
import sys
from pathlib import Path

import pytest

from pspfast.app.demo_training import DemoTraining
from pspfast.app.options import AppConfig
from pspfast.cli import main


@pytest.fixture
def few_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A demo of two steps an epoch."""
    monkeypatch.setattr("pspfast.demo.demo._TRAIN_SCENES", 16)
    monkeypatch.setattr("pspfast.demo.demo._VAL_SCENES", 2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"port": 0}, "port: expected 1 to 65535, got 0"),
        ({"crop_size": (0, 9)}, "crop_size: expected at least 1, got 0"),
        ({"epochs": 0}, "epochs: expected at least 1, got 0"),
    ],
)
def test_options_out_of_range(options: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        AppConfig(**options)


def failure(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["app", *args])
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message


def test_missing_extra_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "pspfast.app.serve", raising=False)
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert failure([], capsys) == (
        "pspfast: error: gradio is not installed; pip install 'pspfast[app]' brings what this "
        "needs\n"
    )


def test_checkpoint_and_port_that_cannot_be_had(
    finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("gradio")
    assert "none.pt" in failure(["--checkpoint", "none.pt"], capsys)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        checkpoint = str(finished_run / "best.safetensors")
        assert port in failure(["--checkpoint", checkpoint, "--port", port], capsys)


def test_page_has_the_model_that_it_trained(few_scenes: None, tmp_path: Path) -> None:
    pytest.importorskip("gradio")
    from pspfast.app.page import Page

    page = Page(AppConfig(demo=str(tmp_path / "demo"), epochs=1), tmp_path)
    assert page.model is None
    (_, first, *_), *_, (_, last, without_model, with_model) = page._train()
    assert first.startswith("<progress value=")
    assert (last, without_model["visible"], with_model["visible"]) == ("", False, True)
    assert page.model is not None
    assert page.model.class_list.names[0] == "sky"
    # Who opens the page later finds it.
    assert Page(AppConfig(demo=str(tmp_path / "demo")), tmp_path).model is not None


def test_training_that_is_stopped_goes_on(few_scenes: None, tmp_path: Path) -> None:
    first = DemoTraining(str(tmp_path), 100)
    first.start()
    first.stop()
    first.start()
    assert not first.is_running
    assert not first.problem
    checkpoints = list((tmp_path / "run").glob("checkpoint-*.safetensors"))
    assert len(checkpoints) == 1
    assert not first.model.exists()


def test_training_that_fails_says_why(few_scenes: None, tmp_path: Path) -> None:
    (tmp_path / "demo").touch()
    training = DemoTraining(str(tmp_path / "demo"), 1)
    training.start()
    training.wait(60)
    assert str(tmp_path / "demo") in training.problem

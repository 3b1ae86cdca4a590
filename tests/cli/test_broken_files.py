"""Files that are broken, foreign or of another version: one line that names the file, status 2."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torchvision.models import resnet18

from pspfast import PSPNet
from pspfast.cli import main
from pspfast.config import Config
from pspfast.files import read_tensors, write_tensors
from pspfast.model_files import load_model

PAGE = "<!DOCTYPE html><html>Quota exceeded</html>"


def failure(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        main(args)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert error.count("pspfast: error") == 1
    return error


@pytest.fixture
def broken_models(finished_run: Path, tmp_path: Path) -> list[Path]:
    """Files that are no model of this version."""
    whole = finished_run / "best.safetensors"
    tensors, header = read_tensors(whole)
    config, model = header["config"], header["config"]["model"]
    headers = {
        "newer.safetensors": {**header, "config": {**config, "model": {"heads": 3}}},
        "no_model.safetensors": {**header, "config": {"data": {}}},
        "no_config.safetensors": {"taxonomy": header["taxonomy"]},
        "no_classes.safetensors": {"config": config},
        "palette.safetensors": {**header, "taxonomy": {"names": ["a"], "palette": [[1, 2]]}},
        "layers.safetensors": {**header, "config": {**config, "model": model | {"layers": 7}}},
        "list.safetensors": [1, 2],
    }
    for name, value in headers.items():
        write_tensors(tmp_path / name, tensors, value)
    write_tensors(tmp_path / "other.safetensors", {"a": torch.zeros(2)}, header)
    save_file({"a": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    (tmp_path / "page.safetensors").write_text(PAGE)
    (tmp_path / "empty.safetensors").touch()
    (tmp_path / "cut.safetensors").write_bytes(whole.read_bytes()[:-1000])
    flipped = bytearray(whole.read_bytes())
    flipped[-100] ^= 1
    (tmp_path / "flipped.safetensors").write_bytes(flipped)
    torch.save({"state_dict": tensors}, tmp_path / "pickle.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    return sorted(tmp_path.glob("*.safetensors"))


def test_broken_models_are_named(
    broken_models: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(broken_models) == 15
    for path in broken_models:
        with pytest.raises((ValueError, OSError), match=path.name.replace(".", r"\.")):
            load_model(path)
        assert path.name in failure(["predict", "--checkpoint", str(path), "x.png"], capsys)


def test_broken_pretrained_files_are_named(tmp_path: Path) -> None:
    weights = resnet18(weights=None).state_dict()
    torch.save(weights, tmp_path / "whole.pth")
    PSPNet(18, stem="7x7", pretrained=tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "page.pth").write_text(PAGE)
    (tmp_path / "empty.pth").touch()
    (tmp_path / "cut.pth").write_bytes(whole[:-100_000])
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"state_dict": 3}, tmp_path / "number.pth")
    torch.save({"epoch": 3, **weights}, tmp_path / "mixed.pth")
    for path in tmp_path.iterdir():
        if path.name != "whole.pth":
            with pytest.raises(ValueError, match=rf"^PSPNet: pretrained: {path}:? "):
                PSPNet(18, stem="7x7", pretrained=path)


def saved(config: Config, path: Path, **changes: object) -> str:
    sections = config.to_dict()
    sections["train"] |= changes
    path.write_text(yaml.safe_dump(sections))
    return str(path)


def test_broken_option_files_are_named(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    contents = {
        "syntax.yaml": b"data: [1\n  x",
        "unknown.yaml": b"data:\n  clases: 3\n",
        "type.yaml": b"train:\n  lr: fast\n",
        "list.yaml": b"- 1\n",
        "binary.yaml": bytes(range(256)),
        "utf16.yaml": "train:\n  lr: 1\n".encode("utf-16-le"),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        error = failure(["train", "--config", str(tmp_path / name)], capsys)
        assert name in error and error.count("\n") == 1, error
    assert "line 2" in failure(["train", "--config", str(tmp_path / "syntax.yaml")], capsys)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_option_files_from_anywhere(
    tmp_path: Path, encoding: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "data:\r\n  classes: 2\r\ntrain:\r\n  precision: no\r\n  lr: 1e-2\r\n  compile: off\r\n"
    (tmp_path / "my.yaml").write_bytes(text.encode(encoding))
    with pytest.raises(SystemExit):
        main(["train", f"--config={tmp_path / 'my.yaml'}", "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)
    train = printed["train"]
    assert (train["precision"], train["lr"], train["compile"]) == ("no", 0.01, False)


def test_damaged_logs_and_checkpoints_end_in_one_line(
    config: Config, tmp_path: Path, finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = saved(config, tmp_path / "config.yaml", resume=str(finished_run / "best.safetensors"))
    error = failure(["train", "--config", file], capsys)
    assert "best.safetensors: not a checkpoint of a run that can be continued" in error
    folder = Path(config.train.output)
    assert not folder.exists()
    folder.mkdir()
    (folder / "log.jsonl").write_text(json.dumps({"epoch": 1, "iteration": 1}) + "\n{broken\n")
    error = failure(["train", "--config", saved(config, tmp_path / "config.yaml")], capsys)
    assert "log.jsonl, line 2" in error

"""Folders as the Hub has them, and the Hub by way of functions that stand for the library's."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from randomised import randomised

from pspfast import PSPNet, optimize_for_inference
from pspfast.model_files import load_model
from pspfast.published.preprocessing import Preprocessing

hub = pytest.importorskip("huggingface_hub", reason="the hub extra is not installed")

SMALL = {"layers": 18, "stem": "7x7", "classes": 3, "head_channels": 8, "aux_channels": 8}


@pytest.fixture
def model() -> PSPNet:
    model = randomised(PSPNet(**SMALL, aux=False, ppm_channels=12, align_corners=False)).eval()
    model.preprocessing = Preprocessing((0.5, 0.4, 0.3), (0.2, 0.2, 0.1), "bgr")
    model.class_names, model.palette = ("a", "b", "c"), ((1, 2, 3), (4, 5, 6), (7, 8, 9))
    return model


def assert_same(got: PSPNet, expected: PSPNet) -> None:
    assert got.options == expected.options
    assert got.preprocessing == expected.preprocessing
    assert (got.class_names, got.palette) == (expected.class_names, expected.palette)
    for key, value in expected.state_dict().items():
        assert torch.equal(got.state_dict()[key], value), key


def test_folder(model: PSPNet, tmp_path: Path) -> None:
    folder = tmp_path / "a" / "model"
    model.save_pretrained(folder, scores={"mIoU": 0.4321})
    assert {path.name for path in folder.iterdir()} == {
        "model.safetensors",
        "config.json",
        "README.md",
    }
    assert_same(PSPNet.from_pretrained(folder), model)
    assert_same(load_model(folder).model, model)
    config = json.loads((folder / "config.json").read_text())
    assert config["library_name"] == "pspfast"
    assert config["options"]["ppm_channels"] == 12
    assert config["preprocessing"]["mean"] == [0.5, 0.4, 0.3]
    assert config["class_names"] == ["a", "b", "c"]
    card = (folder / "README.md").read_text()
    for text in ("library_name: pspfast", "| mIoU | 0.4321 |", "a, b, c", "[0.5, 0.4, 0.3]", "bgr"):
        assert text in card
    # A second model takes the first one's place.
    other = PSPNet(**SMALL)
    other.save_pretrained(folder)
    again = PSPNet.from_pretrained(folder)
    assert again.class_names == ("class_0", "class_1", "class_2")
    assert "Scores" not in (folder / "README.md").read_text()


def test_classifier_of_other_classes_is_kept(tmp_path: Path) -> None:
    model = PSPNet(**SMALL)
    model.cls[4], model.aux[4] = torch.nn.Conv2d(8, 5, 1), torch.nn.Conv2d(8, 5, 1)
    model.save_pretrained(tmp_path)
    assert PSPNet.from_pretrained(tmp_path).classes == 5


def test_what_cannot_be_made_again_is_refused(model: PSPNet, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"expected a PSPNet, got InferencePSPNet"):
        optimize_for_inference(model).save_pretrained(tmp_path / "a")
    model.cls[1] = torch.nn.Identity()
    with pytest.raises(ValueError, match=r"^save_pretrained: .* missing keys: cls\.1\."):
        model.save_pretrained(tmp_path / "a")
    assert not (tmp_path / "a").exists()
    with pytest.raises(FileNotFoundError, match=r"expected a folder with model\.safetensors$"):
        PSPNet.from_pretrained(tmp_path)


def test_what_is_in_the_folder_is_told(tmp_path: Path) -> None:
    for name in ("final", "best"):
        (tmp_path / f"{name}.safetensors").touch()
    there = f"{tmp_path} has best.safetensors, final.safetensors"
    for missing in (tmp_path, tmp_path / "bset.safetensors"):
        with pytest.raises(FileNotFoundError) as error:
            PSPNet.from_pretrained(missing)
        assert str(error.value).startswith(f"{missing}: ")
        assert str(error.value).endswith(f"; {there}")


def test_push_and_pull(model: PSPNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remote = tmp_path / "remote"
    calls: list[Any] = []

    class Api:
        def __init__(self, library_name: str) -> None:
            calls.append(library_name)

        def create_repo(self, name: str, private: bool, exist_ok: bool) -> SimpleNamespace:
            calls.append((name, private, exist_ok))
            return SimpleNamespace(repo_id=name)

        def upload_folder(
            self, repo_id: str, folder_path: str, commit_message: str
        ) -> SimpleNamespace:
            remote.mkdir()
            for path in Path(folder_path).iterdir():
                (remote / path.name).write_bytes(path.read_bytes())
            return SimpleNamespace(commit_url=f"hub/{repo_id}/{commit_message}")

    def hf_hub_download(name: str, file: str, *, revision: str | None, library_name: str) -> str:
        calls.append((name, file, revision))
        if name != "me/my.net":
            raise hub.errors.LocalEntryNotFoundError("no connection, and not in the cache\nmore")
        return str(remote / file)

    monkeypatch.setattr(hub, "HfApi", Api)
    monkeypatch.setattr(hub, "hf_hub_download", hf_hub_download)
    url = model.push_to_hub("me/my.net", private=True, message="first")
    assert url == "hub/me/my.net/first"
    assert calls == ["pspfast", ("me/my.net", True, True)]
    assert_same(PSPNet.from_pretrained("me/my.net", revision="v1"), model)
    # The Hub counts requests for config.json as downloads.
    assert calls[2:] == [("me/my.net", name, "v1") for name in ("config.json", "model.safetensors")]
    with pytest.raises(FileNotFoundError, match=r"^you/none: .* no config\.json .* in the cach"):
        PSPNet.from_pretrained("you/none")
    # A file that is missing is looked for nowhere.
    with pytest.raises(FileNotFoundError, match=r"^folder/none\.pth: no such file"):
        PSPNet.from_pretrained("folder/none.pth")
    assert len(calls) == 5


def test_cache_serves_without_a_connection(
    model: PSPNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library's own cache, as it lies on the disk after a download."""
    commit = "0" * 40
    repository = tmp_path / "models--me--net"
    model.save_pretrained(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert_same(PSPNet.from_pretrained("me/net"), model)
    with pytest.raises(FileNotFoundError, match=r"^me/other: "):
        PSPNet.from_pretrained("me/other")

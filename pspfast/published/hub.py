"""Folders that hold a model as the Hub does, and the Hub itself (extra ``hub``)."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from pspfast.published.own import class_list_of, write_model
from pspfast.published.preprocessing import Preprocessing

_MISSING = "huggingface_hub is not installed; pip install 'pspfast[hub]' brings it"


def save_pretrained(model: Any, folder: Path, scores: dict[str, float] | None) -> None:
    """See ``PSPNet.save_pretrained``."""
    from pspfast.config import Config, DataConfig, ModelConfig
    from pspfast.files import atomic_open

    if not hasattr(model, "options"):
        raise TypeError(
            f"save_pretrained: expected a PSPNet, got {type(model).__name__}: save the PSPNet that "
            "it was made of"
        )
    options = {**model.options, "classes": model.classes}
    _check_rebuilds(model, options)
    processing: Preprocessing = model.preprocessing
    ignore_index = getattr(model.criterion, "ignore_index", 255)
    data = DataConfig(
        classes=model.classes,
        ignore_index=ignore_index if 0 <= ignore_index <= 255 else 255,
        mean=processing.mean,
        std=processing.std,
        channel_order=processing.channel_order,
    )
    named = {name: value for name, value in options.items() if name != "classes"}
    config = Config(model=ModelConfig(**named), data=data)
    class_list = class_list_of(model.class_names, model.palette, model.classes)
    folder.mkdir(parents=True, exist_ok=True)
    note = {"record": dict(scores)} if scores else {}
    write_model(folder / "model.safetensors", model.state_dict(), config, class_list, note)
    described = {
        "library_name": "pspfast",
        "architecture": "PSPNet",
        "options": options,
        "preprocessing": processing.to_dict(),
        "class_names": list(class_list.names),
        "palette": [list(colour) for colour in class_list.palette],
        "scores": scores or {},
    }
    for name, text in (
        ("config.json", json.dumps(described, indent=2) + "\n"),
        ("README.md", _card(described)),
    ):
        with atomic_open(folder / name) as file:
            file.write(text.encode())


def push_to_hub(
    model: Any, name: str, private: bool, scores: dict[str, float] | None, message: str
) -> str:
    """See ``PSPNet.push_to_hub``."""
    hub = _library()
    with TemporaryDirectory() as folder:
        save_pretrained(model, Path(folder), scores)
        api = hub.HfApi(library_name="pspfast")
        repository = api.create_repo(name, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository.repo_id, folder_path=folder, commit_message=message
        )
    return str(commit.commit_url)


def download(name: str, revision: str | None) -> Path:
    """The file of weights of a repository, from the cache where it is there.

    Raises:
        FileNotFoundError: there is no such repository or file, or it cannot be reached.
        ModuleNotFoundError: huggingface_hub is not installed.
    """
    hub = _library()
    paths = []
    # The Hub counts requests for config.json as downloads.
    for file in ("config.json", "model.safetensors"):
        try:
            path = hub.hf_hub_download(name, file, revision=revision, library_name="pspfast")
        except (OSError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise FileNotFoundError(
                f"{name}: no such file or folder here, and no {file} of it from the Hub: "
                f"{type(error).__name__}: {reason}"
            ) from error
        paths.append(path)
    return Path(paths[-1])


def _library() -> Any:
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(_MISSING, name="huggingface_hub") from error
    return huggingface_hub


def _check_rebuilds(model: Any, options: dict[str, Any]) -> None:
    """Raises ValueError where the options do not make this network."""
    from pspfast.published.loading import differences

    with torch.device("meta"):
        made = type(model)(**options).state_dict()
    problem = differences(made, model.state_dict())
    if problem:
        raise ValueError(
            f"save_pretrained: expected the network that its options make, got other layers: "
            f"{problem}"
        )


def _card(described: dict[str, Any]) -> str:
    options, names = described["options"], described["class_names"]
    processing = described["preprocessing"]
    scores = "".join(f"| {name} | {value:.4g} |\n" for name, value in described["scores"].items())
    shown = "".join(f"| {name} | {value} |\n" for name, value in options.items())
    table = f"## Scores\n\n| | |\n|---|---|\n{scores}\n" if scores else ""
    return (
        "---\n"
        "library_name: pspfast\n"
        "pipeline_tag: image-segmentation\n"
        "tags:\n- pspnet\n- semantic-segmentation\n"
        "---\n\n"
        f"# PSPNet{options['layers']}, {len(names)} classes\n\n"
        "```python\n"
        "from pspfast import PSPNet\n\n"
        'model = PSPNet.from_pretrained("owner/name")\n'
        "labels = model.predict(images)  # normalised as below\n"
        "```\n\n"
        f"{table}"
        "## Preprocessing\n\n"
        f"Channels in {processing['channel_order']} order, scaled to 0..1; mean "
        f"{list(processing['mean'])}, standard deviation {list(processing['std'])}.\n\n"
        f"## Classes\n\n{', '.join(names)}\n\n"
        f"## Options\n\n| | |\n|---|---|\n{shown}"
    )

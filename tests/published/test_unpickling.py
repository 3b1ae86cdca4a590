"""What a pickle asks for is neither imported nor called; what makes tensors is read."""

import os
import pickle
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pspfast import PSPNet
from pspfast.published.reading import read_weights

SMALL = {"layers": 18, "stem": "7x7", "classes": 3, "head_channels": 8, "aux_channels": 8}


class Command:
    """Unpickling it runs a command that leaves a marker."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


class Evaluation(Command):
    def __reduce__(self) -> tuple[Any, ...]:
        return eval, (f"open({str(self.marker)!r}, 'w')",)


class Opening(Command):
    """By way of a class that is called when its state is set."""

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.marker), "w"), {"a": 1}


class Nested(Command):
    """By way of torch's own loader of storages, which unpickles again."""

    def __reduce__(self) -> tuple[Any, ...]:
        return torch.storage._load_from_bytes, (pickle.dumps(Command(self.marker)),)


class HistoryBuffer:
    """Stands for what mmengine keeps: objects of its own classes with arrays in them."""

    def __init__(self) -> None:
        self.history = np.arange(5.0)
        self.methods = {"mean": max}


@pytest.mark.parametrize("hostile", [Command, Evaluation, Opening, Nested])
@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("place", ["beside", "within"])
def test_nothing_is_executed(
    tmp_path: Path, hostile: type[Command], is_zip: bool, place: str
) -> None:
    marker, path = tmp_path / "marker", tmp_path / "weights.pth"
    weights: dict[str, Any] = {"a.weight": torch.ones(3)}
    contents = {"state_dict": weights, "message_hub": hostile(marker)}
    if place == "within":
        contents = {"state_dict": {**weights, "b": hostile(marker)}}
    torch.save(contents, path, _use_new_zipfile_serialization=is_zip)
    if place == "within":
        with pytest.raises(ValueError, match=r"weights\.pth: .* it holds b, which are no tensors"):
            read_weights(path)
    else:
        assert torch.equal(read_weights(path).weights["a.weight"], torch.ones(3))
    assert not marker.exists()
    # The file does what it is meant to: plain unpickling leaves the marker.
    if hostile is Command and is_zip:
        torch.load(path, weights_only=False)
        assert marker.exists()


def test_nothing_is_imported(tmp_path: Path) -> None:
    """A module that a pickle names is not even looked for."""
    (tmp_path / "trap.py").write_text("class Trap:\n    pass\nopen('marker', 'w')\n")
    script = "import torch, trap; torch.save({'state_dict': {'a': torch.ones(2)}, 'b': trap.Trap()}"
    subprocess.run([sys.executable, "-c", f"{script}, 'f.pth')"], cwd=tmp_path, check=True)
    (tmp_path / "marker").unlink()
    read = "from pspfast.published.reading import read_weights; from pathlib import Path; "
    read += "import sys; read_weights(Path('f.pth')); assert 'trap' not in sys.modules"
    subprocess.run([sys.executable, "-c", read], cwd=tmp_path, check=True)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("is_zip", [True, False])
def test_files_of_a_training_run(tmp_path: Path, is_zip: bool) -> None:
    model = PSPNet(**SMALL)
    path = tmp_path / "epoch.pth"
    optimizer = torch.optim.AdamW(model.parameters())
    contents = {
        "state_dict": OrderedDict(model.state_dict()),
        "optimizer": optimizer.state_dict(),
        "message_hub": {"log": HistoryBuffer(), "array": np.ones(3), "number": np.float64(3)},
        "model_class": nn.Conv2d,
        "device": torch.device("cpu"),
        "dtype": torch.bfloat16,
        "path": tmp_path,
    }
    torch.save(contents, path, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path)
    got = read_weights(path).weights
    assert got.keys() == model.state_dict().keys()
    assert all(torch.equal(got[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8]
)
@pytest.mark.parametrize("is_zip", [True, False])
def test_tensors_of_any_kind(tmp_path: Path, dtype: torch.dtype, is_zip: bool) -> None:
    base = torch.arange(24).to(dtype).view(4, 6)
    weights = {
        "whole": base,
        "view": base[1:, ::2],
        "transposed": base.t(),
        "scalar": base[2, 3],
        "empty": base[:0],
    }
    if dtype.is_floating_point:
        weights["parameter"] = nn.Parameter(base.clone())
    path = tmp_path / "w.pt"
    saved = {"module." + name: value for name, value in weights.items()}
    torch.save(saved, path, _use_new_zipfile_serialization=is_zip)
    got = read_weights(path).weights
    assert got.keys() == weights.keys()
    for name, value in weights.items():
        assert got[name].dtype == dtype
        assert torch.equal(got[name], value.detach())

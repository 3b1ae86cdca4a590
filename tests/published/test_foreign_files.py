"""Sixty files that are damaged, or no weights of a PSPNet: one line that names the file."""

import gzip
import io
import os
import pickle
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models

from pspfast import PSPNet
from pspfast.cli import main
from pspfast.published.reading import read_weights

SMALL = {"layers": 18, "stem": "7x7", "classes": 3, "head_channels": 8, "aux_channels": 8}
CONVENTIONS = {"align_corners": True, "dilation": "uniform", "block_dilation": "both"}


class Marks:
    """Its unpickling would write a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch executed",)


def saved(contents: object, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(contents, buffer, **options)
    return buffer.getvalue()


def zipped(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name.replace("__", "/").replace("_DOT_", "."), data)
    return buffer.getvalue()


def tarred(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo("pickle")
        entry.size = len(data)
        archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def safetensors(tensors: dict[str, torch.Tensor], folder: Path) -> bytes:
    save_file(tensors, folder / "made")
    data = (folder / "made").read_bytes()
    (folder / "made").unlink()
    return data


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]


def contents(folder: Path) -> Iterator[tuple[str, bytes]]:
    state = PSPNet(**SMALL).half().state_dict()
    whole, legacy = saved(state), saved(state, _use_new_zipfile_serialization=False)
    tensors = safetensors(state, folder)
    # Cut and damaged.
    for i, part in enumerate((0, 1, 7, 40, 3000, len(whole) // 2, len(whole) - 1)):
        yield f"cut{i}.pth", whole[:part]
    for i, part in enumerate((1, 100, 5000, len(legacy) // 3, len(legacy) - 1000)):
        yield f"cut_legacy{i}.pth", legacy[:part]
    for i, part in enumerate((4, 8, 60, 4000, len(tensors) // 2, len(tensors) - 1)):
        yield f"cut{i}.safetensors", tensors[:part]
    yield "flipped_weights.pth", flipped(whole, len(whole) // 2)
    yield "flipped_pickle.pth", flipped(whole, whole.index(b"layer0") + 2)
    yield "flipped_header.safetensors", flipped(tensors, 9)
    yield "flipped_length.safetensors", flipped(tensors, 5)
    # Other kinds of files.
    yield "page.pth", b"<!DOCTYPE html><html>Quota exceeded</html>"
    yield "page2.pth", b"\n  <html><head>"
    yield "page.safetensors", b"\xef\xbb\xbf<html>"
    yield "error.pth", b'{"error": "access denied"}'
    yield "text.pth", b"404: Not Found\n"
    yield "lfs.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n"
    yield "keras.h5", b"\x89HDF\r\n\x1a\n" + bytes(600)
    yield "weights.pth.gz", gzip.compress(whole[:5000])
    yield "weights.tar", tarred(pickle.dumps(Marks()))
    yield "zeros.pth", bytes(5000)
    yield "noise.pth", np.random.default_rng(0).bytes(4000)
    yield "picture.png", b"\x89PNG\r\n\x1a\n" + bytes(300)
    yield "photo.jpg", b"\xff\xd8\xff\xe0" + bytes(300)
    yield "paper.pdf", b"%PDF-1.7\n" + bytes(300)
    yield "model.gguf", b"GGUF" + bytes(300)
    yield "model.onnx", b"\x08\x0a\x12\x07pytorch" + bytes(300)
    yield "array.npy", b"\x93NUMPY\x01\x00" + bytes(300)
    yield "arrays.npz", zipped(a_DOT_npy=b"\x93NUMPY", b_DOT_npy=b"\x93NUMPY")
    yield "document.docx", zipped(word__document_DOT_xml=b"<xml/>")
    yield "nothing.zip", zipped()
    yield "script.pt", zipped(m__data_DOT_pkl=b"", m__constants_DOT_pkl=b"")
    yield "program.pt2", zipped(a__models__model_DOT_pt2=b"", version=b"1")
    # Pickles.
    yield "paddle.pdparams", pickle.dumps({"conv.weight": np.ones((2, 2), np.float32)})
    yield "hostile.pkl", pickle.dumps(Marks())
    yield "hostile.pth", saved(Marks())
    yield "hostile_legacy.pth", saved(Marks(), _use_new_zipfile_serialization=False)
    yield "hostile_weights.pth", saved({"state_dict": {**state, "more": Marks()}})
    renamed = saved({"a": torch.ones(3)}).replace(b"_rebuild_tensor_v2", b"_rebuild_parameter")
    yield "hostile_storage.pth", renamed
    yield "module.pth", saved(nn.Conv2d(3, 3, 3))
    yield "tensor.pth", saved(torch.ones(3))
    yield "list.pth", saved([torch.ones(3)])
    yield "number.pth", saved({"state_dict": 3})
    yield "empty_dict.pth", saved({})
    # Other networks.
    with torch.device("meta"):
        others = {
            "vgg.pth": models.vgg11(),
            "deeplab.pth": models.segmentation.deeplabv3_resnet50(weights_backbone=None),
            "wide.pth": models.wide_resnet50_2(),
        }
    for name, network in others.items():
        shapes = {key: value.shape for key, value in network.state_dict().items()}
        yield name, saved({key: torch.zeros(shape).half() for key, shape in shapes.items()})
    for name, keys in (
        ("smp.pth", ("encoder.conv1.weight", "decoder.psp.blocks.0.pool.1.0.bias")),
        ("upernet.pth", ("decode_head.lateral_convs.0.conv.weight",)),
        ("decoder.pth", ("conv_last.4.weight", "ppm.0.1.weight")),
    ):
        yield name, saved({key: torch.ones(1) for key in keys})
    yield "missing.pth", saved({k: v for k, v in state.items() if k != "layer2.0.bn1.bias"})
    yield "shape.pth", saved({**state, "layer2.0.bn1.bias": torch.ones(3)})
    yield "unconventional.pth", saved(state)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("foreign")
    for name, data in contents(folder):
        (folder / name).write_bytes(data)
    return sorted(folder.iterdir())


def test_each_is_named(
    files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(files) >= 60
    for path in files:
        for command in (["predict", "x.png", "--checkpoint"], ["convert"]):
            with pytest.raises(SystemExit) as stop:
                main([*command, str(path)])
            assert stop.value.code == 2, path
            error = capsys.readouterr().err
            assert path.name in error, error
            assert error.startswith(f"pspfast: error: {command[0]}: ") and error.count("\n") == 1
        assert not [*tmp_path.iterdir()]  # neither a marker nor half a model


def test_what_is_there_is_said(files: list[Path]) -> None:
    folder = files[0].parent
    for name, what in (
        ("page.pth", "got an HTML page: the download failed"),
        ("lfs.safetensors", "git lfs pull"),
        ("keras.h5", "HDF5"),
        ("cut0.pth", "got an empty file"),
        ("cut3.safetensors", "its header has"),
        ("flipped_weights.pth", "damaged: .*/data/.* has another CRC-32"),
        ("script.pt", "TorchScript"),
        ("text.pth", "'404: Not Found'"),
        ("smp.pth", r"torch\.compile\(model, backend='pspfast'\)"),
        ("upernet.pth", "an UPerNet"),
        ("decoder.pth", r"expected the encoder, too"),
        ("wide.pth", "layer1.0.conv1.weight: expected"),
        ("vgg.pth", "features.0.weight"),
        ("missing.pth", "missing keys: layer2.0.bn1.bias"),
        ("shape.pth", r"layer2.0.bn1.bias: expected \(128,\), got \(3,\)"),
        ("module.pth", "an object of class Conv2d"),
    ):
        with pytest.raises(ValueError, match=what):
            PSPNet.from_pretrained(folder / name, **CONVENTIONS, classes=3)
    with pytest.raises(ValueError, match=r"^from_pretrained: align_corners: .* does not tell it"):
        PSPNet.from_pretrained(folder / "unconventional.pth")
    model = PSPNet.from_pretrained(folder / "unconventional.pth", **CONVENTIONS)
    assert model.classes == 3


def test_files_without_checksums_are_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.ones(3)}, tmp_path / "a.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(read_weights(tmp_path / "a.pth").weights["a"], torch.ones(3))

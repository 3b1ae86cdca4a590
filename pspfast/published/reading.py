"""Files of weights as they are found: what they hold, or what they are instead."""

from __future__ import annotations

import warnings
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pspfast.published.unpickling import SAFE_PICKLE

# Beginnings of files that are often found under the name of weights.
_KINDS = (
    (b"\x89HDF\r\n", "an HDF5 file (Keras), which is not read"),
    (b"version https://git-lfs", "a pointer of Git LFS, not the file it stands for; git lfs pull"),
    (b"\x1f\x8b", "compressed by gzip; unpack it first"),
    (b"BZh", "compressed by bzip2; unpack it first"),
    (b"\xfd7zXZ", "compressed by xz; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd; unpack it first"),
    (b"Rar!", "a RAR archive; unpack it first"),
    (b"7z\xbc\xaf", "a 7z archive; unpack it first"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"%PDF", "a PDF document"),
    (b"GGUF", "a GGUF file of llama.cpp"),
    (b"\x93NUMPY", "a single array of NumPy"),
)
# Under which a file holds the weights, besides other things; the first that is there counts.
_CONTAINERS = ("state_dict", "model_state_dict", "model", "net", "network", "weights")
# What wrappers put before every key: DataParallel, torch.compile, Lightning.
_PREFIXES = ("module.", "_orig_mod.", "model.")
# Keys that belong to no layer: counters of before torch 0.4.1, CSAIL's synchronised BatchNorm.
_EXTRA = ("_tmp_running_mean", "_tmp_running_var", "_running_iter")


@dataclass
class WeightsFile:
    """What a file holds.

    Attributes:
        path: of the file.
        weights: tensors by name, without what wrappers put before the names.
        meta: what else it holds by name, ``meta`` of mmsegmentation for one.
        header: metadata of a safetensors file.
    """

    path: Path
    weights: dict[str, Tensor]
    meta: dict[str, Any] = field(default_factory=dict)
    header: dict[str, str] = field(default_factory=dict)


def read_weights(path: Path) -> WeightsFile:
    """Reads a safetensors file or what ``torch.save`` wrote; executes nothing that it holds.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged or holds no tensors by name; says what it is.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file of weights{others_in(path.parent)}")
    if not path.is_file():
        raise ValueError(f"{path}: expected a file of weights, got a folder, pipe or device")
    kind = _kind(path)
    if kind == "safetensors":
        return _read_safetensors(path)
    if kind != "torch":
        raise ValueError(f"{path}: expected a file of weights, got {kind}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            contents = torch.load(
                path, map_location="cpu", weights_only=False, pickle_module=SAFE_PICKLE
            )
    # A damaged file makes the unpickler fail in any way there is.
    except Exception as error:
        reason = str(error).partition("\n")[0][:200]
        raise ValueError(
            f"{path}: damaged, or no file of torch.save: {type(error).__name__}: {reason}"
        ) from error
    return _unwrap(path, contents)


def others_in(folder: Path) -> str:
    """For an error: which files of weights are there instead; empty where none are."""
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    more = ", …" if len(names) > 5 else ""
    return f"; {folder} has {', '.join(names[:5])}{more}" if names else ""


def _kind(path: Path) -> str:
    """``"safetensors"``, ``"torch"``, or what else a file is, from its first bytes."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(512)
    if not start:
        return "an empty file"
    for mark, kind in _KINDS:
        if start.startswith(mark):
            return kind
    if start[257:262] == b"ustar":
        return "a tar archive; unpack it first"
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "an HTML page: the download failed"
    if text.startswith((b"{", b"[")):
        return "JSON text"
    if start.startswith(b"PK"):
        return _kind_of_zip(path)
    # A safetensors file begins with the length of its header, at most 100 MB, which is JSON.
    length = int.from_bytes(start[:8], "little")
    if start[8:9] == b"{" and length <= 100_000_000:
        if length + 8 > size:
            return f"a safetensors file that was cut: its header has {length} bytes, it has {size}"
        return "safetensors"
    if start[:1] == b"\x80":
        return "torch"
    if all(byte in b"\t\r\n" or 32 <= byte < 127 for byte in start):
        return f"a text: {start[:40].decode().splitlines()[0]!r}"
    return f"something else; its first bytes are {start[:8].hex(' ')}"


def _kind_of_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            damaged = [name for name in names if not _is_whole(archive, name)]
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError):
        return "a zip archive that was cut or is damaged"
    # torch reads on where a checksum is wrong. All are after set_crc32_options(False).
    if damaged and len(damaged) < len(names):
        return f"a zip archive that is damaged: {damaged[0]} has another CRC-32 than it should"
    parts = {name.rpartition("/")[2] for name in names}
    if "constants.pkl" in parts:
        return "a TorchScript archive; torch.save(torch.jit.load(it).state_dict(), …) makes weights"
    if "data.pkl" in parts:
        return "torch"
    if any(name.endswith((".so", ".pt2")) or "exported_program" in name for name in names):
        return "an exported program (.pt2)"
    if parts and all(part.endswith(".npy") for part in parts):
        return "an archive of NumPy arrays"
    return f"a zip archive without torch's data.pkl; it has {', '.join(names[:3]) or 'nothing'}"


def _is_whole(archive: zipfile.ZipFile, name: str) -> bool:
    try:
        with archive.open(name) as member:
            while member.read(2**20):
                pass
    except (zipfile.BadZipFile, EOFError, zlib.error):
        return False
    return True


def _read_safetensors(path: Path) -> WeightsFile:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, AttributeError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{path}: not a readable safetensors file: {error}") from error
    return WeightsFile(path, _bare(weights), header=header)


def _unwrap(path: Path, contents: Any) -> WeightsFile:
    if isinstance(contents, Tensor):
        raise ValueError(f"{path}: expected tensors by name, got a single tensor")
    if not isinstance(contents, Mapping):
        kind = type(contents).__name__
        raise ValueError(
            f"{path}: expected tensors by name, got an object of class {kind}; "
            "torch.save(it.state_dict(), …) makes weights of a network"
        )
    meta: dict[str, Any] = {}
    for _ in range(3):  # as deep as anybody nests them
        inner = next((n for n in _CONTAINERS if isinstance(contents.get(n), Mapping)), None)
        if inner is None:
            break
        meta |= {k: v for k, v in contents.items() if isinstance(k, str) and k != inner}
        contents = contents[inner]
    others = [str(k) for k, v in contents.items() if not isinstance(v, Tensor)]
    if not contents or others or not all(isinstance(k, str) for k in contents):
        what = f"{', '.join(others[:5])}, which are no tensors" if others else "nothing"
        raise ValueError(f"{path}: expected tensors by name, a state_dict; it holds {what}")
    return WeightsFile(path, _bare(contents), meta)


def _bare(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names without the wrappers' prefixes."""
    found = dict(weights)
    while prefix := next(
        (p for p in _PREFIXES if found and all(k.startswith(p) for k in found)), None
    ):
        found = {name.removeprefix(prefix): value for name, value in found.items()}
    return {k: v for k, v in found.items() if not k.endswith(_EXTRA)}

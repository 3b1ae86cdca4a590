"""Files that are whole or not there: any, and those of tensors; and text from anywhere."""

from __future__ import annotations

import codecs
import json
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

TEMPORARY = ".tmp"


@contextmanager
def atomic_open(path: Path) -> Iterator[BinaryIO]:
    """Opens a file for writing that appears under its name complete, or keeps what was there.

    Only a process that is killed leaves ``<name>.tmp`` behind; whoever writes next replaces it. A
    link of either name is replaced, not followed.

    Raises:
        OSError: it cannot be written, the disk is full for one; names the file.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        temporary.unlink(missing_ok=True)
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        # Errors of writing, other than of opening, name no file.
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def read_lines(path: Path, kind: str) -> list[str]:
    """The lines of a text file, without their ends; UTF-8, or what its byte order mark says.

    Bytes that are no UTF-8 stay what they are in file names (PEP 383).

    Args:
        path: of the file.
        kind: what the file should be, for the error.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no text file.
    """
    if path.exists() and not path.is_file():
        raise ValueError(f"{path}: expected a file, got a folder, pipe or device, so no {kind}")
    data = path.read_bytes()
    # The mark of UTF-32 begins with that of UTF-16.
    marks = {
        codecs.BOM_UTF32_LE: "utf-32",
        codecs.BOM_UTF32_BE: "utf-32",
        codecs.BOM_UTF16_LE: "utf-16",
        codecs.BOM_UTF16_BE: "utf-16",
        codecs.BOM_UTF8: "utf-8-sig",
    }
    encoding = next((name for mark, name in marks.items() if data.startswith(mark)), "utf-8")
    if encoding == "utf-8" and b"\0" in data:
        raise ValueError(
            f"{path}: not a text file, or one in UTF-16 without a byte order mark, so no {kind}; "
            "save it in UTF-8"
        )
    errors = "surrogateescape" if encoding.startswith("utf-8") else "strict"
    try:
        text = data.decode(encoding, errors)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: damaged {encoding} text, so no {kind}: {error}") from error
    return text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n").split("\n")


def write_tensors(path: Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Writes a safetensors file with a header of plain values and a checksum of both.

    Args:
        path: file to write.
        tensors: by name.
        header: what JSON holds.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    text = json.dumps(header)
    metadata = {"pspfast": text, "crc32": _checksum(text, tensors)}
    with atomic_open(path) as file:
        file.write(serialize(tensors, metadata=metadata))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the header that ``write_tensors`` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is another file, or it is damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    # Of a type of tensors that this torch lacks, for one, it raises what it has at hand.
    except (SafetensorError, AttributeError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{path}: not a readable safetensors file: {error}") from error
    if not {"pspfast", "crc32"} <= metadata.keys():
        raise ValueError(f"{path}: not written by pspfast train")
    found = _checksum(metadata["pspfast"], tensors)
    if found != metadata["crc32"]:
        raise ValueError(
            f"{path}: damaged: expected the CRC-32 {metadata['crc32']} of its contents, got {found}"
        )
    header = json.loads(metadata["pspfast"])
    if not isinstance(header, dict):
        raise ValueError(f"{path}: not written by pspfast train: its header is no table")
    return tensors, header


def _checksum(text: str, tensors: dict[str, Tensor]) -> str:
    """Of everything that is read, names and shapes, too: the format itself checks sizes only."""
    value = zlib.crc32(text.encode())
    for name, tensor in sorted(tensors.items()):
        value = zlib.crc32(f"{name} {tensor.dtype} {[*tensor.shape]}".encode(), value)
        value = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, value)
    return f"{value:08x}"


def _sync_folder(folder: Path) -> None:
    """Puts a new name on the disk; Windows opens no folders and needs no such thing."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

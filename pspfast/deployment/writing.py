"""A ``torch.export`` program as a file: ONNX, or torch's own."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def checked_path(path: str | Path, name: str) -> Path:
    """Where a file can be written, before any work is done for it.

    Args:
        path: that is checked.
        name: of the function whose argument it is.

    Raises:
        TypeError, ValueError: no path, another ending, or a folder.
        NotADirectoryError: what should be its folder is a file.
        ModuleNotFoundError: ONNX is meant, and onnx or onnxscript is not installed.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"{name}: path: expected a path, got {type(path).__name__}")
    path = Path(path)
    if path.suffix not in (".onnx", ".pt2"):
        raise ValueError(f"{name}: path: expected a name ending in .onnx or .pt2, got {path}")
    if path.is_dir():
        raise ValueError(f"{name}: path: expected a file to write, got the folder {path}")
    for folder in path.parents:
        if folder.exists():
            if not folder.is_dir():
                raise NotADirectoryError(f"{name}: path: {folder} is a file, not a folder")
            break
    if path.suffix == ".onnx":
        for package in ("onnx", "onnxscript"):
            if find_spec(package) is None:
                raise ModuleNotFoundError(
                    f"{name}: {package} is not installed; pip install 'pspfast[export]' brings it",
                    name=package,
                )
    return path


def write(
    program: torch.export.ExportedProgram,
    path: Path,
    inputs: tuple[Tensor, ...],
    *,
    input_names: Sequence[str],
    output_names: Sequence[str],
    described: str | None = None,
) -> None:
    """Writes all of the file or nothing.

    Args:
        program: of standard operators.
        path: as :func:`checked_path` gives it.
        inputs: that the program was traced with.
        input_names: of an ONNX file.
        output_names: likewise.
        described: metadata of the file, under ``pspfast``.
    """
    if path.suffix == ".onnx":
        data = _onnx(program, inputs, input_names, output_names, described)
    else:
        buffer = io.BytesIO()
        extra = {} if described is None else {"pspfast": described}
        torch.export.save(program, buffer, extra_files=extra)
        data = buffer.getvalue()
    from pspfast.files import atomic_open

    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_open(path) as file:
        file.write(data)


def _onnx(
    program: torch.export.ExportedProgram,
    inputs: tuple[Tensor, ...],
    input_names: Sequence[str],
    output_names: Sequence[str],
    described: str | None,
) -> bytes:
    with _quiet():
        made: Any = torch.onnx.export(
            program,
            inputs,
            input_names=input_names,
            output_names=output_names,
            verbose=False,
        )
    if described is not None:
        made.model.metadata_props["pspfast"] = described
    data: bytes = made.model_proto.SerializeToString()
    return data


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter reports its optimiser's steps as warnings."""
    logger = logging.getLogger("onnxscript")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)

"""Loads ``pspfast._C`` and says what to do when that fails."""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import warnings

import torch


def _load() -> tuple[dict[str, str | None] | None, str | None]:
    try:
        return importlib.import_module("pspfast._C").build_info(), None
    except ModuleNotFoundError:
        return None, (
            "pspfast._C is not built: run `pip install .` in the source folder "
            "(`pip install -e . --no-build-isolation` to develop)"
        )
    except ImportError as error:
        return None, (
            f"pspfast._C, built for torch {_built_for()}, does not load with torch "
            f"{torch.__version__}: reinstall pspfast ({error})"
        )


def _built_for() -> str:
    requirements = importlib.metadata.requires("pspfast") or []
    return next((m[1] for r in requirements if (m := re.match(r"torch==([\d.]+)", r))), "?")


#: What the library was built with and for, or None; and why it could not be loaded, or None.
build_info, load_error = _load()
if load_error:
    warnings.warn(
        f"{load_error}. Until then ops run on slower implementations.", RuntimeWarning, stacklevel=2
    )

"""Loads the op library, and ``pspfast._C`` that describes it; says what to do when that fails."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path

import torch

#: The op library: it registers ``torch.ops.pspfast``, and runs with every torch from the oldest
#: that it is built for on.
LIBRARY = Path(__file__).with_name("libpspfast.so")


def _load() -> tuple[dict[str, str | None] | None, str | None]:
    try:
        info = importlib.import_module("pspfast._C").build_info()
    except ModuleNotFoundError:
        return None, (
            "pspfast._C is not built: run `pip install .` in the source folder "
            "(`pip install -e . --no-build-isolation` to develop)"
        )
    except ImportError as error:
        return None, f"pspfast._C does not load: reinstall pspfast ({error})"
    try:
        torch.ops.load_library(LIBRARY)
    except OSError as error:
        return None, (
            f"{LIBRARY.name}, built for torch {info['least_torch']} and newer, does not load with "
            f"torch {torch.__version__}: reinstall pspfast ({error})"
        )
    return info, None


#: What the library was built with and for, or None; and why it could not be loaded, or None.
build_info, load_error = _load()
if load_error:
    warnings.warn(
        f"{load_error}. Until then ops run on slower implementations.", RuntimeWarning, stacklevel=2
    )

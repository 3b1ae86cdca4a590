"""The source folder of a clone, where Python finds it before the installed package.

``python -m pspfast``, ``torchrun -m pspfast`` and an interactive session look for modules in the
working directory first. In a clone that was installed by ``pip install .`` they find the sources,
which have no compiled library. The modules of the installed package are taken then.
"""

from __future__ import annotations

import sys
import warnings
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path


def built_path(path: list[str]) -> list[str]:
    """Where the package's modules are: ``path``, or the installed package's where that is built and
    this one is not; a warning tells so.

    Args:
        path: ``pspfast.__path__`` as Python found it.
    """
    folder = Path(path[0]).resolve()
    if _is_built(folder):
        return path
    elsewhere = [entry for entry in sys.path if Path(entry).resolve() != folder.parent]
    for finder in sys.meta_path:
        # Finders of editable installations know their package, whatever the path.
        spec = finder.find_spec("pspfast", elsewhere)
        for installed in spec.submodule_search_locations or () if spec else ():
            if _is_built(Path(installed)):
                warnings.warn(
                    f"{folder} is a source folder without a compiled library: the package that "
                    f"is installed in {installed} is used instead of it",
                    RuntimeWarning,
                    stacklevel=3,
                )
                return [installed]
    return path


def _is_built(folder: Path) -> bool:
    return any((folder / f"_C{suffix}").is_file() for suffix in EXTENSION_SUFFIXES)

import re
import subprocess
import sys

import pytest

from pspfast import _extension

BLOCKED = """
import importlib.abc, sys, warnings
import torch

class Broken(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "pspfast._C":
            {module}

def load_library(path):
    {library}

sys.meta_path.insert(0, Broken())
torch.ops.load_library = load_library
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import pspfast
from pspfast.cli.info import report
from pspfast.ops import pyramid_pool
print([str(w.message) for w in caught if "pspfast" in str(w.message)])
print(pyramid_pool(torch.ones(1, 1, 2, 2), (1,)).tolist())
print(report())
"""


@pytest.mark.parametrize(
    ("module", "library", "message"),
    [
        (
            "raise ModuleNotFoundError(name)",
            "raise AssertionError",
            "pspfast._C is not built: run `pip install .`",
        ),
        (
            "raise ImportError('wrong ELF class')",
            "raise AssertionError",
            "pspfast._C does not load: reinstall pspfast (wrong ELF class)",
        ),
        (
            "return None",
            "raise OSError('undefined symbol: torch_parallel_for')",
            "libpspfast.so, built for torch 2.10 and newer, does not load with torch",
        ),
    ],
)
def test_a_library_that_does_not_load_says_so_once_and_ops_still_run(
    module: str, library: str, message: str
) -> None:
    result = subprocess.run(
        [sys.executable, "-c", BLOCKED.format(module=module, library=library)],
        capture_output=True,
        text=True,
        check=True,
    )
    warnings, pooled, *report = result.stdout.splitlines()
    assert warnings.count(message) == 1
    assert pooled == "[[[1.0]]]"
    assert "cpu tensors  reference" in report
    assert any(line.startswith("no cpu") and message in line for line in report)


def test_build_info() -> None:
    info = _extension.build_info
    assert info is not None
    assert set(info) == {"torch", "least_torch", "compiler", "isas", "cuda", "cuda_archs"}
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", info["torch"])
    assert "baseline" in info["isas"]
    assert (info["cuda"] is None) == (info["cuda_archs"] is None)
    codes = (info["cuda_archs"] or "").split()
    assert all(re.fullmatch(r"(sm|compute)_\d+[af]?", code) for code in codes)


def test_importing_pspfast_leaves_the_extras_alone() -> None:
    code = (
        "import sys, pspfast; "
        "print(sorted({m.split('.')[0] for m in sys.modules} & "
        "{'accelerate', 'torchvision', 'torchmetrics', 'jsonargparse', 'matplotlib', 'PIL'}))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"

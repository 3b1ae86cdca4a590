import subprocess
import sys

import pytest
import torch

from pspfast import _extension

BLOCKED = """
import importlib.abc, sys, warnings

class Broken(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "pspfast._C":
            raise {error}

sys.meta_path.insert(0, Broken())
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import pspfast
import torch
from pspfast.cli.info import report
from pspfast.ops import pyramid_pool
print([str(w.message) for w in caught if "pspfast" in str(w.message)])
print(pyramid_pool(torch.ones(1, 1, 2, 2), (1,)).tolist())
print(report())
"""


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("ModuleNotFoundError(name)", "pspfast._C is not built: run `pip install .`"),
        ("ImportError('undefined symbol: _ZN3c10')", "reinstall pspfast (undefined symbol: _ZN3c1"),
    ],
)
def test_a_library_that_does_not_load_says_so_once_and_ops_still_run(
    error: str, message: str
) -> None:
    result = subprocess.run(
        [sys.executable, "-c", BLOCKED.format(error=error)],
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
    assert info["torch"].split(".")[:2] == torch.__version__.split(".")[:2]
    assert "baseline" in info["isas"]
    assert (info["cuda"] is None) == (info["cuda_archs"] is None)


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

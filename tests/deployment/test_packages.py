"""Packages of AOTInductor and of torch.compile call this project's kernels, in other processes."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from randomised import randomised
from torch_release import TORCH

from pspfast import PSPNet, backends
from pspfast.ops import pyramid_pool

pytestmark = pytest.mark.skipif("cpu" in backends.MISSING, reason="there are no kernels to keep")

# torch 2.10 loads a package only where something else has imported the code cache.
LOAD = """
import torch, torch._inductor.codecache
{imports}
torch.set_num_threads({threads})  # A saved function asks for as many.
inputs, expected = torch.load("expected.pt")
got = {load}(inputs)
torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
"""


def run_fresh(imports: str, load: str, folder: Path) -> subprocess.CompletedProcess[str]:
    code = LOAD.format(imports=imports, load=load, threads=torch.get_num_threads())
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@torch.no_grad()
def test_package_keeps_the_kernels(tmp_path: Path) -> None:
    model = PSPNet(18, stem="7x7", head_channels=8, aux=False, classes=4)
    randomised(model).eval()
    images = torch.randn(1, 3, 33, 41)
    torch.save((images, model(images)), tmp_path / "expected.pt")
    package = tmp_path / "model.pt2"
    torch._inductor.aoti_compile_and_package(
        torch.export.export(model, (images,)),
        package_path=str(package),
        # Of the code that calls the kernels, whose optimisation takes the compiler longest.
        inductor_configs={"aot_inductor.compile_wrapper_opt_level": "O0"},
    )
    with zipfile.ZipFile(package) as archive:
        texts = [archive.read(name) for name in archive.namelist() if name.endswith(".json")]
    for op in ("dilated_conv2d", "pyramid_pool", "pyramid_mix", "pyramid_upsample_add"):
        assert any(f"pspfast::{op}".encode() in text for text in texts), op
    load = 'torch._inductor.aoti_load_package("model.pt2")'
    loaded = run_fresh("import pspfast", load, tmp_path)
    assert loaded.returncode == 0, loaded.stderr
    absent = run_fresh("", load, tmp_path)
    assert absent.returncode == 1
    # As docs/deployment.md quotes it.
    assert "RuntimeError: Could not find schema for pspfast::" in absent.stderr


@pytest.mark.skipif(TORCH < (2, 12), reason="torch 2.11's compiled functions cannot be saved")
def test_function_that_torch_compile_saved_keeps_the_kernels(tmp_path: Path) -> None:
    def pooled(x: torch.Tensor) -> torch.Tensor:
        return pyramid_pool(x, (1, 2, 3, 6)).relu()

    x = torch.randn(1, 16, 9, 11)
    torch.save((x, pooled(x)), tmp_path / "expected.pt")
    saved = tmp_path / "pooled.pt"
    compiled = torch.compile(pooled, fullgraph=True).aot_compile(((x,), {}))
    compiled.save_compiled_function(str(saved))
    assert b"torch.ops.pspfast.pyramid_pool.default(" in saved.read_bytes()
    load = 'torch.compiler.load_compiled_function(open("pooled.pt", "rb"))'
    loaded = run_fresh("import pspfast", load, tmp_path)
    assert loaded.returncode == 0, loaded.stderr

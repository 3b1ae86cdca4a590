"""Packages of AOTInductor call this project's kernels, in processes that import it."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from randomised import randomised

from pspfast import PSPNet, backends

pytestmark = pytest.mark.skipif("cpu" in backends.MISSING, reason="there are no kernels to keep")

LOAD = """
import torch
{imports}
images, expected = torch.load("expected.pt")
logits = torch._inductor.aoti_load_package("model.pt2")(images)
torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
"""


def run_fresh(imports: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", LOAD.format(imports=imports)]
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
    loaded = run_fresh("import pspfast", tmp_path)
    assert loaded.returncode == 0, loaded.stderr
    absent = run_fresh("", tmp_path)
    assert absent.returncode == 1
    # As docs/deployment.md quotes it.
    assert "RuntimeError: Could not find schema for pspfast::" in absent.stderr

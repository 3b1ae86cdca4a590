"""Exported files in other runtimes, and without pspfast."""

import json
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from randomised import randomised, relative_difference
from torch_release import TORCH
from without_pspfast import run_without_pspfast

import pspfast
from pspfast import PSPNet, ops, optimize_for_inference
from pspfast.cli import main
from pspfast.model_files import load_model
from pspfast.published.preprocessing import Preprocessing

TINY = {"layers": 18, "stem": "7x7", "head_channels": 8, "aux_channels": 8, "classes": 4}
SIZES = [(97, 97), (70, 131), (64, 65), (9, 200), (8, 8)]
# semseg's crop, and a photograph's shape.
LARGE_SIZES = [(473, 473), (512, 683)]


@pytest.fixture(scope="module")
def model() -> PSPNet:
    torch.manual_seed(0)
    return randomised(PSPNet(**TINY)).eval()


@pytest.fixture(scope="module")
def dynamic_onnx(model: PSPNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnxscript", reason="the export extra is not installed")
    return pspfast.export(model, tmp_path_factory.mktemp("onnx") / "a" / "m.onnx", size=(33, 41))


@torch.no_grad()
def test_onnxruntime_at_any_size(model: PSPNet, dynamic_onnx: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(dynamic_onnx)
    described = json.loads(session.get_modelmeta().custom_metadata_map["pspfast"])
    assert described["class_names"] == [f"class_{i}" for i in range(4)]
    for batch, size in [*product((1, 3), SIZES), *product((1,), LARGE_SIZES)]:
        images = torch.randn(batch, 3, *size)
        (got,) = session.run(["logits"], {"images": images.numpy()})
        assert relative_difference(torch.from_numpy(got), model(images)) < 1e-4


@torch.no_grad()
def test_openvino_at_any_size(model: PSPNet, dynamic_onnx: Path) -> None:
    openvino = pytest.importorskip("openvino", reason="the bench extra is not installed")
    core = openvino.Core()
    hint = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(dynamic_onnx), "CPU", hint)
    for batch, size in [*product((2,), SIZES), *product((1,), LARGE_SIZES)]:
        images = torch.randn(batch, 3, *size)
        got = torch.from_numpy(np.array(compiled([images.numpy()])[0]))
        assert relative_difference(got, model(images)) < 1e-4


def test_no_operator_is_ours(model: PSPNet, dynamic_onnx: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="the export extra is not installed")
    graph = onnx.load(dynamic_onnx)
    onnx.checker.check_model(graph)
    assert {entry.domain for entry in graph.opset_import} == {""}
    # Neither bins nor tiles are unrolled: some hundred nodes at any size.
    assert len(graph.graph.node) < 900
    direct = onnx.load(pspfast.export(model, tmp_path / "direct.onnx", winograd=False))
    assert len(direct.graph.node) < 600


@pytest.mark.skipif(TORCH < (2, 12), reason="torch 2.11 fixes the parity of max pooling's input")
def test_program_runs_without_pspfast(tmp_path: Path) -> None:
    """From bytes in RGB to labels, of a model that wants them otherwise."""
    model = randomised(PSPNet(**TINY, align_corners=False)).eval()
    model.preprocessing = Preprocessing((0.1, 0.2, 0.3), (0.5, 0.25, 0.2), "bgr")
    path = tmp_path / "m.pt2"
    pspfast.export(model, path, size=(40, 48), outputs="labels", preprocess=True)
    images = torch.randint(0, 256, (1, 3, 51, 66), dtype=torch.uint8)
    torch.save(images, tmp_path / "images.pt")
    code = """
program = torch.export.load("m.pt2").module()
torch.save(program(torch.load("images.pt")), "labels.pt")
"""
    run_without_pspfast(code, tmp_path)
    labels = torch.load(tmp_path / "labels.pt")
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.25, 0.2])
    prepared = (images.flip(1) / 255 - mean[:, None, None]) / std[:, None, None]
    assert labels.shape == (1, 51, 66)
    assert (labels == model.predict(prepared)).double().mean() > 0.999


class Pools(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return ops.pyramid_pool(x, (1, 2, 3, 6))


def test_programs_of_the_kernels_load_after_the_import(tmp_path: Path) -> None:
    images = torch.randn(1, 2, 13, 17)
    torch.export.save(torch.export.export(Pools(), (images,)), tmp_path / "p.pt2")
    torch.save((images, Pools()(images)), tmp_path / "p.pt")
    script = "import torch, pspfast; x, y = torch.load('p.pt'); "
    script += "assert torch.equal(torch.export.load('p.pt2').module()(x), y)"
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    without = subprocess.run(
        [sys.executable, "-c", script.replace(", pspfast", "")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert without.returncode == 1
    assert "pspfast" in without.stderr


@torch.no_grad()
def test_command(finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint, target = finished_run / "final.safetensors", tmp_path / "out" / "m.pt2"
    options = ["--size", "[33, 41]", "--outputs", "probabilities"]
    main(["export", "--checkpoint", str(checkpoint), "--output", str(target), *options])
    assert capsys.readouterr().out == f"{target}\n"
    program = torch.export.load(target, extra_files=(extra := {"pspfast": ""}))
    assert json.loads(extra["pspfast"])["outputs"] == "probabilities"
    images = torch.randn(1, 3, 33, 41)
    expected = load_model(checkpoint).model(images).softmax(1)
    torch.testing.assert_close(program.module()(images), expected, rtol=1e-4, atol=1e-6)


def test_wrong_arguments(model: PSPNet, tmp_path: Path) -> None:
    for options, message in (
        ({"path": tmp_path / "m.pth"}, r"path: expected a name ending in \.onnx or \.pt2, got"),
        ({"size": (0, 5)}, r"size: expected \(H, W\) of at least 1, got \(0, 5\)"),
        ({"outputs": "masks"}, "outputs: expected \"logits\", .* got 'masks'"),
    ):
        with pytest.raises(ValueError, match=f"^export: {message}"):
            pspfast.export(model, **{"path": tmp_path / "m.pt2", **options})
    with pytest.raises(TypeError, match="got InferencePSPNet: export the PSPNet that it was made"):
        pspfast.export(optimize_for_inference(model), tmp_path / "m.pt2")
    rasters = PSPNet(**TINY, in_channels=5)
    with pytest.raises(ValueError, match=r"preprocess: expected False .* got True and 5"):
        pspfast.export(rasters, tmp_path / "m.pt2", preprocess=True)
    assert not [*tmp_path.iterdir()]

"""Other libraries' models in files, rewritten."""

from pathlib import Path

import pytest
import torch
from randomised import randomised, relative_difference
from torch import Tensor, nn
from whole_models import PlainPSPNet, PlainUPerNet, transformers_model
from without_pspfast import run_without_pspfast

import pspfast
from pspfast.deployment.rewritten import _programmed


def operators(program: torch.export.ExportedProgram) -> list[str]:
    return [str(node.target) for node in program.graph.nodes if node.op == "call_function"]


@torch.no_grad()
def test_onnxruntime(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="the bench extra is not installed")
    onnx = pytest.importorskip("onnx", reason="the export extra is not installed")
    torch.manual_seed(0)
    model = randomised(transformers_model("SegFormer").model).train()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    images = torch.randn(1, 3, 64, 96)
    path = pspfast.export_rewritten(model, [images], tmp_path / "new" / "m.onnx")
    assert model.training
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    graph = onnx.load(path)
    assert {entry.domain for entry in graph.opset_import} == {""}
    # The maps of its head are neither upsampled nor concatenated.
    assert not {"Resize", "Concat"} & {node.op_type for node in graph.graph.node}
    session = runtime.InferenceSession(path)
    (got,) = session.run(["logits"], {"pixel_values": images.numpy()})
    expected = model.eval()(images).logits
    assert relative_difference(torch.from_numpy(got), expected) < 1e-5


@pytest.mark.parametrize("kind", [PlainPSPNet, PlainUPerNet])
@torch.no_grad()
def test_any_size_without_pspfast(kind: type[nn.Module], tmp_path: Path) -> None:
    """In channels_last, with activations in place."""
    model = randomised(kind()).eval().to(memory_format=torch.channels_last)
    path = pspfast.export_rewritten(
        model, [torch.randn(2, 3, 65, 97)], tmp_path / "m.pt2", dynamic=True
    )
    batches = [
        torch.randn(n, 3, *size) for n, size in ((1, (97, 73)), (3, (64, 50)), (2, (56, 49)))
    ]
    torch.save(batches, tmp_path / "images.pt")
    code = """
program = torch.export.load("m.pt2").module()
torch.save([program(x) for x in torch.load("images.pt")], "logits.pt")
"""
    run_without_pspfast(code, tmp_path)
    assert not [name for name in operators(torch.export.load(path)) if "pspfast" in name]
    for images, got in zip(batches, torch.load(tmp_path / "logits.pt"), strict=True):
        assert relative_difference(got, model(images)) < 1e-5


@torch.no_grad()
def test_the_head_is_cheaper() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model = randomised(PlainUPerNet()).eval()
    images = torch.randn(1, 3, 96, 96)
    program, names = _programmed(model, [images], False, True)
    assert names == ["x"]
    assert not [name for name in operators(program) if "pspfast" in name]
    counts = []
    for network in (model, program.module()):
        with FlopCounterMode(display=False) as counter:
            network(images)
        counts.append(counter.get_total_flops())
    assert counts[1] < 0.95 * counts[0]


class Plain(nn.Module):
    """Nothing for a rule, and a structure as its result."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.offset = torch.ones(2)
        self.register_buffer("not_saved", torch.ones(2), persistent=False)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor | list[Tensor]]:
        x = self.layer(x) + self.not_saved + self.offset
        return {"sum": x + y, "both": [x, y * 2]}


@torch.no_grad()
def test_models_without_a_match(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    onnx = pytest.importorskip("onnx", reason="the export extra is not installed")
    pytest.importorskip("onnxscript", reason="the export extra is not installed")
    model, inputs = Plain().half(), [torch.randn(4, 3).half(), torch.randn(2).half()]
    program = pspfast.rewritten_program(model, inputs)
    assert "no rule applies to Plain" in caplog.text
    expected, got = model(*inputs), program.module()(*inputs)
    torch.testing.assert_close(got, expected)
    path = pspfast.export_rewritten(model, inputs, tmp_path / "m.onnx")
    graph = onnx.load(path).graph
    assert [entry.name for entry in graph.input] == ["x", "y"]
    assert [entry.name for entry in graph.output] == ["sum", "both_0", "both_1"]


class FixedSize(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.ones(8, 8) if x.shape[2] == 8 else x


def test_wrong_arguments(tmp_path: Path) -> None:
    x = torch.randn(2, 3, 8, 8)
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.onnx").mkdir()
    before = sorted(tmp_path.iterdir())
    for arguments, error, message in (
        ((lambda x: x, [x], "m.pt2"), TypeError, "model: expected an nn.Module, got function"),
        ((nn.ReLU(), x, "m.pt2"), TypeError, "inputs: expected a sequence of tensors, got Tensor"),
        ((nn.ReLU(), [1], "m.pt2"), TypeError, "inputs: expected a sequence of tensors, got int"),
        ((torch.compile(nn.ReLU()), [x], "m.pt2"), TypeError, "expected one that is not compiled"),
        ((nn.ReLU(), [x[:1]], "m.pt2"), ValueError, r"inputs: 0: .* got \[1, 3, 8, 8\]"),
        ((FixedSize(), [x], "m.pt2"), ValueError, "FixedSize: Constraints violated"),
        ((nn.ReLU(), [x], "m"), ValueError, "path: expected a name ending in .onnx or .pt2"),
        ((nn.ReLU(), [x], "folder.onnx"), ValueError, "path: expected a file to write, got the fo"),
        ((nn.ReLU(), [x], "file/m.pt2"), NotADirectoryError, "file is a file, not a folder"),
    ):
        model, inputs, name = arguments
        with pytest.raises(error, match=f"^export_rewritten: .*{message}"):
            pspfast.export_rewritten(model, inputs, tmp_path / name, dynamic=True)
    with pytest.raises(TypeError, match=r"^export_rewritten: path: expected a path, got int"):
        pspfast.export_rewritten(nn.ReLU(), [x], 3)
    assert sorted(tmp_path.iterdir()) == before

"""torch.compile(model, backend="pspfast")."""

from __future__ import annotations

import copy
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from rewriting import relative, rewritten, rules, same
from torch import Tensor, nn


class Network(nn.Module):
    """An encoder of two stages, their maps concatenated, BatchNorm, residual, logits upsampled."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True)
        )
        self.second = nn.Sequential(
            nn.Conv2d(16, 24, 3, stride=4, padding=1), nn.BatchNorm2d(24), nn.ReLU(inplace=True)
        )
        self.fuse = nn.Conv2d(40, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.classifier = nn.Conv2d(16, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.first(x)
        b = self.second(a)
        up = F.interpolate(b, a.shape[2:], mode="bilinear")
        out = self.norm(self.fuse(torch.cat([a, up], 1)))
        out += a
        logits = self.classifier(F.relu(out, inplace=True))
        return F.interpolate(logits, x.shape[2:], mode="bilinear")


def image(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(size or (2, 3, 49, 65), dtype=dtype)


def step(model: Any, x: Tensor) -> tuple[Any, ...]:
    """The result, and all gradients and buffers after it."""
    parameters = list(model.parameters())
    out = model(x)
    out.square().mean().backward()
    gradients = [p.grad.clone() for p in parameters]
    for p in parameters:
        p.grad = None
    return out.detach(), gradients, [b.clone() for b in model.buffers()]


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch.compiler.reset()


def test_by_name_without_an_import() -> None:
    code = """
import torch
assert "pspfast" in torch.compiler.list_backends()
model = torch.nn.Conv2d(3, 4, 1).eval()
x = torch.randn(1, 3, 5, 5)
compiled = torch.compile(model, backend="pspfast", options={"rest": "eager"})
assert torch.equal(compiled(x), model(x))
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


@pytest.mark.parametrize("rest", ["eager", "inductor"])
def test_training_step(rest: str) -> None:
    model = Network().double()
    compiled = copy.deepcopy(model)
    compiled.compile(backend="pspfast", options={"rest": rest}, fullgraph=True)
    x = image(dtype=torch.float64)
    for _ in range(2):
        same(step(compiled, x), step(model, x), 1e-10)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_inference(mode: Any) -> None:
    model = Network().eval()
    compiled, report = rewritten(model)
    with mode():
        x = image()
        assert relative(compiled(x), model(x)) < 1e-5
    assert "upsample_concat_conv2d" in rules(report)


def test_sizes_and_modes_change() -> None:
    model = Network().eval()
    compiled = torch.compile(model, backend="pspfast", options={"rest": "eager"})
    for size in ((1, 3, 33, 33), (2, 3, 41, 37), (1, 3, 49, 65)):
        x = image(*size)
        assert relative(compiled(x), model(x)) < 1e-5
        with torch.no_grad():
            assert relative(compiled(x), model(x)) < 1e-5


def test_symbolic_sizes() -> None:
    model = Network().eval()
    compiled, report = rewritten(model, dynamic=True, fullgraph=True)
    with torch.no_grad():
        for size in ((2, 3, 33, 33), (3, 3, 41, 37)):
            x = image(*size)
            assert relative(compiled(x), model(x)) < 1e-5
    assert "upsample_concat_conv2d" in rules(report)


def test_symbolic_sizes_of_training() -> None:
    model = Network().double()
    other = copy.deepcopy(model)
    compiled, report = rewritten(other, dynamic=True, fullgraph=True)
    for size in ((2, 3, 33, 33), (3, 3, 41, 37)):
        x = image(*size, dtype=torch.float64)
        results = []
        for run, network in ((compiled, other), (model, model)):
            out = run(x)
            out.square().mean().backward()
            results.append([out.detach(), [p.grad for p in network.parameters()]])
            results[-1].append(list(network.buffers()))
        same(*results, 1e-10)
    assert {"upsample_concat_conv2d", "batch_norm_relu"} <= set(rules(report))


def test_graph_breaks() -> None:
    class Broken(Network):
        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x)
            torch._dynamo.graph_break()
            return F.interpolate(super().forward(out[:, :3]), (9, 9), mode="bilinear").argmax(1)

    model = Broken().eval()
    compiled, report = rewritten(model)
    x = image()
    with torch.no_grad():
        assert torch.equal(compiled(x), model(x))
    assert rules(report).count("upsample_concat_conv2d") == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    model = Network()
    x = image()
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(x.double())
    results = []
    for network in (copy.deepcopy(model), model):
        run, _ = rewritten(network) if network is not model else (model, None)
        with torch.autocast("cpu", dtype):
            out = run(x)
        out.float().square().mean().backward()
        assert all(p.grad.dtype == torch.float32 for p in network.parameters())
        results.append((out, torch.cat([p.grad.flatten() for p in network.parameters()])))
    (ours, our_gradients), (eager, gradients) = results
    assert ours.dtype == eager.dtype
    assert relative(ours, exact) <= 1.5 * relative(eager, exact)
    assert relative(our_gradients, gradients) < 0.1


def test_channels_last() -> None:
    model = Network().to(memory_format=torch.channels_last).eval()
    compiled, _ = rewritten(model)
    x = image().contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        same(compiled(x), model(x), 1e-5)


@pytest.mark.parametrize("is_split", [False, True])
def test_distributed_data_parallel(
    is_split: bool, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_split:
        # Several buckets, for each of which Dynamo compiles a graph.
        monkeypatch.setattr(dist, "_DEFAULT_FIRST_BUCKET_BYTES", 1000)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = Network().double()
        wrapped = nn.parallel.DistributedDataParallel(
            copy.deepcopy(model), bucket_cap_mb=0.01 if is_split else 25
        )
        compiled, report = rewritten(wrapped)
        x = image(dtype=torch.float64)
        ours, eager = compiled(x), model(x)
        ours.square().mean().backward()
        eager.square().mean().backward()
        gradients = [[p.grad for p in m.parameters()] for m in (wrapped, model)]
        same([ours.detach(), gradients[0]], [eager.detach(), gradients[1]], 1e-10)
        # A rule sees what is in one graph.
        assert ("upsample_concat_conv2d" in rules(report)) is not is_split
    finally:
        dist.destroy_process_group()


def test_checkpointed_graphs_stay() -> None:
    class Checkpointed(Network):
        def forward(self, x: Tensor) -> Tensor:
            return torch.utils.checkpoint.checkpoint(super().forward, x, use_reentrant=False)

    model = Checkpointed().double().eval()
    other = copy.deepcopy(model)
    compiled, report = rewritten(other)
    x = image(dtype=torch.float64)
    out = compiled(x)
    out.square().mean().backward()
    eager = model(x)
    eager.square().mean().backward()
    gradients = [[p.grad for p in m.parameters()] for m in (other, model)]
    same([out.detach(), *gradients[0]], [eager.detach(), *gradients[1]], 1e-10)
    assert not report.applications
    assert "higher-order operator" in report.leavings[0].reason


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rest": "fast"}, "expected 'inductor' or 'eager', got 'fast'"),
        ({"rules": 1}, "expected 'rest', got 'rules'"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    compiled = torch.compile(nn.Conv2d(3, 4, 1), backend="pspfast", options=options)
    with pytest.raises(Exception, match=message):
        compiled(image())

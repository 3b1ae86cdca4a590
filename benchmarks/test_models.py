"""Whole models of other libraries with ``torch.compile(backend="pspfast")``: image to labels, and a
training step, against eager in channels_last, Inductor and the runtimes that serve models."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pspfast
from benchmarks.peers import PEERS
from benchmarks.semseg import SemsegPSPNet
from pspfast import PSPNet

SIZE, CLASSES = 512, 150
TRAINING_SIZE, BATCH = 256, 2
# A round of the larger models takes ten seconds of all peers; the comparison warms them up.
ROUNDS, WARMUP_ROUNDS = 5, 0

STAGES = ["stage1", "stage2", "stage3", "stage4"]
B2 = {"depths": [3, 4, 6, 3], "hidden_sizes": [64, 128, 320, 512], "decoder_hidden_size": 768}


def upernet_convnext() -> nn.Module:
    library = pytest.importorskip("transformers")
    backbone = library.ConvNextConfig(
        hidden_sizes=[96, 192, 384, 768], depths=[3, 3, 9, 3], out_features=STAGES
    )
    config = library.UperNetConfig(backbone_config=backbone, num_labels=CLASSES)
    return library.UperNetForSemanticSegmentation(config)


def segformer(**sizes: Any) -> nn.Module:
    library = pytest.importorskip("transformers")
    # Layers left out at random would make the sides differ.
    config = library.SegformerConfig(num_labels=CLASSES, drop_path_rate=0.0, **sizes)
    return library.SegformerForSemanticSegmentation(config)


def smp(name: str) -> nn.Module:
    library = pytest.importorskip("segmentation_models_pytorch")
    return getattr(library, name)("resnet50", encoder_weights=None, classes=CLASSES)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "UPerNet-ConvNeXt-T": upernet_convnext,
    "SegFormer-B0": segformer,
    "SegFormer-B2": lambda: segformer(**B2),
    "UPerNet-ResNet50": lambda: smp("UPerNet"),
    "DeepLabV3+-ResNet50": lambda: smp("DeepLabV3Plus"),
    "PSPNet-ResNet50": lambda: SemsegPSPNet(PSPNet(50, classes=CLASSES).state_dict()),
}


@pytest.fixture(autouse=True)
def own_compilations() -> None:
    """Functions of one code share the number of times that they may be compiled."""
    torch.compiler.reset()


def build(name: str, device: torch.device) -> nn.Module:
    torch.manual_seed(0)
    model = MODELS[name]()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    model.to(device, memory_format=torch.channels_last)
    with torch.no_grad():
        # transformers installs hooks at the first call, which would break every side's graph.
        model.eval()(torch.zeros(1, 3, 64, 64, device=device))
    return model


def upsampled(model: nn.Module, images: Tensor) -> Tensor:
    out = model(images)
    logits = out if isinstance(out, Tensor) else out.logits
    return F.interpolate(logits, images.shape[2:], mode="bilinear", align_corners=False)


class Upsampled(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return upsampled(self.model, images)


def served(model: nn.Module, images: Tensor) -> dict[str, Callable[[], Any]]:
    """Image to labels by what holds the weights fixed; what is not installed is left out."""
    names = {"torch.compile": "torch.compile, frozen"}
    names |= {name: name for name in ("ONNX Runtime", "OpenVINO")}
    module = Upsampled(model)
    return {
        title: PEERS[name].make(module, images, torch.float32)
        for name, title in names.items()
        if not PEERS[name].missing() and images.device.type == "cpu"
    }


@pytest.mark.parametrize("name", MODELS)
def test_labels(compare, name: str, device) -> None:
    model = build(name, device).eval()
    images = torch.randn(1, 3, SIZE, SIZE, device=device)
    images = images.contiguous(memory_format=torch.channels_last)

    def labels() -> Tensor:
        return upsampled(model, images).argmax(1)

    sides = {
        "ours": torch.compile(labels, backend="pspfast"),
        "eager": labels,
        "torch.compile": torch.compile(labels),
    }
    with torch.no_grad():
        sides |= served(model, images)
        results = {side: torch.as_tensor(function()) for side, function in sides.items()}
        for result in results.values():
            assert (result == results["eager"]).float().mean() > 0.9999
        compare(sides.pop("ours"), sides, ROUNDS, WARMUP_ROUNDS)


def test_where_nothing_applies(compare, device) -> None:
    """A vision transformer: the same graph, as Inductor compiles it."""
    library = pytest.importorskip("torchvision")
    model = library.models.vit_b_16(weights=None).to(device).eval()
    # Its last layer starts with zeros.
    nn.init.normal_(model.heads.head.weight)
    images = torch.randn(1, 3, 224, 224, device=device)
    with torch.no_grad():
        assert not pspfast.explain(model, images).applied
    sides = {
        "ours": torch.compile(lambda: model(images), backend="pspfast"),
        "torch.compile": torch.compile(lambda: model(images)),
    }
    with torch.no_grad():
        results = {side: function() for side, function in sides.items()}
        torch.testing.assert_close(results["ours"], results["torch.compile"])
        compare(sides.pop("ours"), sides)


Side = Callable[[Callable[..., Any]], Callable[[], Tensor]]


def training_step(name: str, device: torch.device) -> Side:
    """Takes what compiles and returns a step of a copy of the model: forward, loss, backward, SGD;
    the same for all."""
    first = build(name, device).train()
    for module in first.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    images = torch.randn(BATCH, 3, TRAINING_SIZE, TRAINING_SIZE, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    target = torch.randint(CLASSES, (BATCH, TRAINING_SIZE, TRAINING_SIZE), device=device)

    def side(compiler: Callable[..., Any]) -> Callable[[], Tensor]:
        model = copy.deepcopy(first)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
        loss_of = compiler(lambda: F.cross_entropy(upsampled(model, images), target))

        def step() -> Tensor:
            optimizer.zero_grad()
            loss = loss_of()
            loss.backward()
            optimizer.step()
            return loss.detach()

        return step

    return side


@pytest.mark.parametrize("name", ["UPerNet-ConvNeXt-T", "SegFormer-B0"])
def test_training_step(compare, name: str, device) -> None:
    side = training_step(name, device)
    sides = {
        "ours": side(lambda f: torch.compile(f, backend="pspfast")),
        "eager": side(lambda f: f),
        "torch.compile": side(torch.compile),
    }
    losses = {side: step() for side, step in sides.items()}
    torch.testing.assert_close(losses["ours"], losses["eager"], rtol=1e-3, atol=0.0)
    compare(sides.pop("ours"), sides, ROUNDS, WARMUP_ROUNDS)

"""Models of other libraries: logits, labels, loss, gradients and statistics are eager's."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from rewriting import relative, rewritten, rules
from torch import Tensor, nn
from whole_models import CLASSES, build

MODELS = {
    "plain PSPNet": ("upsample_concat_conv2d", "pyramid_pool", "upsample_logits"),
    "plain UPerNet": ("upsample_concat_conv2d", "pyramid_pool", "upsample_logits"),
    "plain HRNetV2": ("upsample_concat_conv2d", "folded_conv2d", "upsample_logits"),
    "transformers UPerNet-ConvNeXt": ("upsample_concat_conv2d", "pyramid_pool", "folded_conv2d"),
    "transformers SegFormer": ("upsample_concat_conv2d", "merged_pointwise", "upsample_logits"),
    "transformers Data2Vec": ("upsample_concat_conv2d", "upsample_logits"),
    "transformers MobileViT-DeepLabV3": ("folded_conv2d", "upsample_logits"),
    "smp PSPNet resnet18": ("upsample_concat_conv2d", "pyramid_pool", "upsample_logits"),
    "smp UPerNet resnet18": ("upsample_concat_conv2d", "pyramid_pool", "upsample_logits"),
    "smp FPN resnet18": ("upsample_concat_conv2d", "upsample_logits"),
    "smp DeepLabV3Plus resnet50": ("folded_conv2d", "upsample_logits"),
    "smp Unet resnet18": ("upsample_concat_conv2d", "folded_conv2d"),
    "smp Segformer tu-resnet18": ("folded_conv2d", "upsample_logits"),
    "smp PAN resnet18": ("folded_conv2d", "upsample_logits"),
    "smp Linknet resnet18": ("folded_conv2d",),
    "torchvision fcn_resnet50": ("folded_conv2d", "upsample_logits"),
    "torchvision deeplabv3_resnet50": ("folded_conv2d", "upsample_logits"),
}


# Encoders of strides that ask for whole ones, and one that takes images of its own size alone.
SIZES = {"smp": (64, 96), "transformers Data2Vec": (64, 64)}


@pytest.fixture(params=MODELS, ids=lambda name: name.replace(" ", "-"))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(name: str) -> nn.Module:
    return build(*name.split())


def images(name: str, layout: torch.memory_format, batch: int = 2) -> Tensor:
    size = SIZES.get(name) or SIZES.get(name.split()[0], (65, 97))
    return torch.randn(batch, 3, *size).contiguous(memory_format=layout)


def test_logits_and_labels(name: str, model: nn.Module) -> None:
    layout = torch.channels_last
    model = model.to(memory_format=layout)
    x = images(name, layout)

    compiled, _ = rewritten(model)
    labelled, report = rewritten(lambda x: model(x).argmax(1))
    with torch.inference_mode():
        logits = model(x)
        assert (labelled(x) == logits.argmax(1)).float().mean() >= 0.9999
        missing = set(MODELS[name]) - set(rules(report))
        assert not missing, rules(report)
        assert relative(compiled(x), logits) < 1e-4
        y = images(name, torch.contiguous_format, batch=1)
        assert relative(compiled(y), model(y)) < 1e-4


def test_training_step(name: str, model: nn.Module) -> None:
    x = images(name, torch.contiguous_format)
    target = torch.randint(0, CLASSES, (2, *x.shape[2:]))
    target[:, :9] = 255

    def step(network: nn.Module, x: Tensor) -> Tensor:
        return F.cross_entropy(network(x), target, ignore_index=255)

    losses, gradients, statistics = [], [], []
    for kind in ("ours", "eager", "exact"):
        network = copy.deepcopy(model).train()
        if kind == "exact":
            network = network.double()
        run = rewritten(step)[0] if kind == "ours" else step
        loss = run(network, x.to(next(network.parameters()).dtype))
        loss.backward()
        losses.append(loss.detach())
        found = [p.grad for p in network.parameters() if p.grad is not None]
        gradients.append(torch.cat([g.double().flatten() for g in found]))
        kept = [b.double().flatten() for b in network.buffers()]
        statistics.append(torch.cat(kept) if kept else torch.zeros(1))
    assert relative(losses[0], losses[1]) < 1e-5
    assert relative(statistics[0], statistics[1]) < 1e-5
    eager_error = relative(gradients[1], gradients[2])
    assert relative(gradients[0], gradients[2]) < eager_error + 1e-3

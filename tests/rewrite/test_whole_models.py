"""Models of other libraries: logits, labels, loss, gradients and statistics are eager's."""

from __future__ import annotations

import copy
from typing import Any

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
    "transformers SegFormer-B2": (
        "upsample_concat_conv2d",
        "merged_pointwise",
        "upsample_logits",
    ),
    "transformers Data2Vec": ("upsample_concat_conv2d", "upsample_logits"),
    "transformers MobileViT-DeepLabV3": ("folded_conv2d", "upsample_logits"),
    "smp PSPNet resnet18": ("upsample_concat_conv2d", "pyramid_pool", "upsample_logits"),
    "smp UPerNet resnet18": ("upsample_concat_conv2d", "pyramid_pool", "upsample_logits"),
    "smp FPN resnet18": ("summed_upsample", "upsample_concat_conv2d", "upsample_logits"),
    "smp DeepLabV3Plus resnet50": ("folded_conv2d", "upsample_logits"),
    "smp Unet resnet18": ("upsample_concat_conv2d", "folded_conv2d"),
    "smp Segformer tu-resnet18": ("upsample_concat_conv2d", "merged_pointwise", "upsample_logits"),
    "smp PAN resnet18": ("folded_conv2d", "upsample_logits"),
    "smp Linknet resnet18": ("folded_conv2d",),
    "torchvision fcn_resnet50": ("folded_conv2d", "upsample_logits"),
    "torchvision deeplabv3_resnet50": ("folded_conv2d", "upsample_logits"),
}


# Encoders of strides that ask for whole ones, and one that takes images of its own size alone.
SIZES = {
    "smp": (64, 96),
    "smp PAN resnet18": (128, 128),
    "transformers Data2Vec": (64, 64),
}


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


def training_step(name: str, model: nn.Module, dtypes: dict[str, torch.dtype]) -> dict[str, Any]:
    """Loss, gradients and buffers of a step, by eager mode and by the rewritten graph ("ours"),
    each in one of ``dtypes``."""
    x = images(name, torch.contiguous_format)
    target = torch.randint(0, CLASSES, (2, *x.shape[2:]))
    target[:, :9] = 255

    def step(network: nn.Module, x: Tensor) -> Tensor:
        return F.cross_entropy(network(x), target, ignore_index=255)

    results = {}
    for kind, dtype in dtypes.items():
        network = copy.deepcopy(model).train().to(dtype)
        run, report = rewritten(step) if kind == "ours" else (step, None)
        loss = run(network, x.to(dtype))
        loss.backward()
        assert report is None or rules(report)
        gradients = [p.grad.flatten() for p in network.parameters() if p.grad is not None]
        buffers = [b.double().flatten() for b in network.buffers()]
        kept = torch.cat(buffers) if buffers else torch.zeros(1)
        results[kind] = loss.detach(), torch.cat(gradients), kept
    return results


def test_training_step_is_exact(name: str, model: nn.Module) -> None:
    results = training_step(name, model, {"ours": torch.float64, "eager": torch.float64})
    for ours, eager in zip(results["ours"], results["eager"], strict=True):
        # BatchNorm of few values, in a network of many layers, amplifies what was rounded.
        assert relative(ours, eager) < 1e-9


@pytest.mark.parametrize("name", ["plain PSPNet", "plain UPerNet", "plain HRNetV2"])
def test_training_step_in_single_precision(name: str, model: nn.Module) -> None:
    dtypes = {"ours": torch.float32, "eager": torch.float32, "exact": torch.float64}
    results = training_step(name, model, dtypes)
    ours, eager, exact = results.values()
    assert relative(ours[0], eager[0]) < 1e-5
    assert relative(ours[1], exact[1]) < relative(eager[1], exact[1]) + 1e-3
    assert relative(ours[2], eager[2]) < 1e-5

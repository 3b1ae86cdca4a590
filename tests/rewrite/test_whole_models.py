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

LAYOUTS = (torch.contiguous_format, torch.channels_last)

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
FULL_SIZES = {"smp": [(512, 512), (512, 352)], "transformers Data2Vec": [(64, 64)]}
OF_EACH_MODEL = pytest.mark.parametrize("name", MODELS, ids=lambda name: name.replace(" ", "-"))


@pytest.fixture
def model(name: str) -> nn.Module:
    return build(*name.split())


@pytest.fixture
def sizes(name: str, pytestconfig: pytest.Config) -> list[tuple[int, int]]:
    """Of the images: of some small one, or with --full-sizes of those that models are used with."""
    library = name.split()[0]
    if pytestconfig.getoption("--full-sizes"):
        return FULL_SIZES.get(name) or FULL_SIZES.get(library) or [(512, 512), (509, 333)]
    return [SIZES.get(name) or SIZES.get(library, (65, 97))]


class Labels(nn.Module):
    def forward(self, logits: Tensor) -> Tensor:
        return logits.argmax(1)


@OF_EACH_MODEL
def test_logits_and_labels(name: str, model: nn.Module, sizes: list[tuple[int, int]]) -> None:
    for layout in LAYOUTS:
        model = model.to(memory_format=layout)
        compiled, _ = rewritten(model)
        labelled, report = rewritten(nn.Sequential(model, Labels()))
        for batch, size in enumerate(sizes, 1):
            x = torch.randn(3 - batch, 3, *size).contiguous(memory_format=layout)
            with torch.inference_mode():
                logits = model(x)
                assert (labelled(x) == logits.argmax(1)).float().mean() >= 0.9999
                assert relative(compiled(x), logits) < 1e-4
        missing = set(MODELS[name]) - set(rules(report))
        assert not missing, rules(report)


def training_step(
    model: nn.Module,
    size: tuple[int, int],
    layout: torch.memory_format,
    dtypes: dict[str, torch.dtype],
) -> dict[str, Any]:
    """Loss, gradients and buffers of a step, by eager mode and by the rewritten graph ("ours"),
    each in one of ``dtypes``."""
    # A BatchNorm of two pooled images has nothing but rounding to go by if they are alike.
    contrast = torch.tensor([0.5, 2.0]).view(2, 1, 1, 1)
    x = (contrast * torch.randn(2, 3, *size)).contiguous(memory_format=layout)
    target = torch.randint(0, CLASSES, (2, *size))
    target[:, :9] = 255

    def step(network: nn.Module, x: Tensor) -> Tensor:
        return F.cross_entropy(network(x), target, ignore_index=255)

    results = {}
    for kind, dtype in dtypes.items():
        network = copy.deepcopy(model).train().to(dtype, memory_format=layout)
        run, report = rewritten(step) if kind == "ours" else (step, None)
        loss = run(network, x.to(dtype))
        loss.backward()
        assert report is None or rules(report)
        gradients = [p.grad.flatten() for p in network.parameters() if p.grad is not None]
        buffers = [b.double().flatten() for b in network.buffers()]
        kept = torch.cat(buffers) if buffers else torch.zeros(1)
        results[kind] = loss.detach(), torch.cat(gradients), kept
    return results


@OF_EACH_MODEL
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_training_step_is_exact(
    model: nn.Module, sizes: list[tuple[int, int]], layout: torch.memory_format
) -> None:
    dtypes = {"ours": torch.float64, "eager": torch.float64}
    results = training_step(model, sizes[0], layout, dtypes)
    for ours, eager in zip(results["ours"], results["eager"], strict=True):
        # BatchNorm of few values, in a network of many layers, amplifies what was rounded.
        assert relative(ours, eager) < 1e-9


def keep_away_from_zero(model: nn.Module) -> None:
    """What BatchNorm gives the ReLUs gets a mean of 3 or -3 standard deviations, by channel.

    Around zero, rounding decides which ReLUs are open, of eager's as of ours, and a single one of
    the last stage's 262,144 moves the gradients before it by half a percent.
    """
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.affine:
            module.bias.data.fill_(3.0)[1::2] = -3.0


@OF_EACH_MODEL
def test_training_step_in_single_precision(model: nn.Module, sizes: list[tuple[int, int]]) -> None:
    keep_away_from_zero(model)
    dtypes = {"ours": torch.float32, "eager": torch.float32, "exact": torch.float64}
    for size, layout in zip(sizes, LAYOUTS, strict=False):
        ours, eager, exact = training_step(model, size, layout, dtypes).values()
        # Eager's own loss is 1.2e-5 off where its BatchNorm adds up a map in channels_last.
        assert relative(ours[0], exact[0]) < 1e-5
        assert relative(ours[1], exact[1]) < relative(eager[1], exact[1]) + 1e-3
        assert relative(ours[2], eager[2]) < 1e-5


def test_first_call_of_transformers_models_stays_in_one_graph() -> None:
    pytest.importorskip("transformers")
    model = build("transformers", "SegFormer")
    images, target = torch.randn(2, 3, 64, 96), torch.randint(5, (2, 64, 96))

    def loss(images: Tensor) -> Tensor:
        logits = model(images)
        size = images.shape[2:]
        return F.cross_entropy(F.interpolate(logits, size, mode="bilinear"), target)

    compiled, report = rewritten(loss, fullgraph=True)
    torch.testing.assert_close(compiled(images), loss(images))
    assert "upsample_logits" in rules(report)

"""Segmentation models of other libraries, small, with random weights and BatchNorm statistics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 7


def conv_bn_relu(c: int, o: int, k: int = 1, **options: Any) -> nn.Sequential:
    conv = nn.Conv2d(c, o, k, padding=k // 2 * options.get("dilation", 1), bias=False, **options)
    return nn.Sequential(conv, nn.BatchNorm2d(o), nn.ReLU(inplace=True))


class Backbone(nn.Module):
    """Four maps of strides 2, 4, 8 and 8."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            [
                conv_bn_relu(3, 16, 3, stride=2),
                conv_bn_relu(16, 24, 3, stride=2),
                conv_bn_relu(24, 32, 3, stride=2),
                conv_bn_relu(32, 32, 3, dilation=2),
            ]
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


def up(x: Tensor, to: Tensor, align_corners: bool) -> Tensor:
    return F.interpolate(x, to.shape[2:], mode="bilinear", align_corners=align_corners)


class PlainPSPNet(nn.Module):
    """As semseg writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.features = nn.ModuleList(
            [nn.Sequential(nn.AdaptiveAvgPool2d(b), conv_bn_relu(32, 8)) for b in (1, 2, 3, 6)]
        )
        self.cls = nn.Sequential(
            conv_bn_relu(64, 16, 3), nn.Dropout2d(0.0), nn.Conv2d(16, CLASSES, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        feature = self.backbone(x)[-1]
        out = [feature, *(up(f(feature), feature, True) for f in self.features)]
        return up(self.cls(torch.cat(out, 1)), x, True)


class PlainUPerNet(nn.Module):
    """As CSAIL writes it: the maps of all levels fused by a 3×3 convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.pools = nn.ModuleList(
            [nn.Sequential(nn.AdaptiveAvgPool2d(b), conv_bn_relu(32, 8)) for b in (1, 2, 3, 6)]
        )
        self.last = conv_bn_relu(64, 16, 3)
        self.laterals = nn.ModuleList([conv_bn_relu(c, 16) for c in (16, 24, 32)])
        self.outs = nn.ModuleList([conv_bn_relu(16, 16, 3) for _ in range(3)])
        self.fusion = nn.Sequential(conv_bn_relu(64, 16, 3), nn.Conv2d(16, CLASSES, 1))

    def forward(self, x: Tensor) -> Tensor:
        maps = self.backbone(x)
        pooled = [maps[-1], *(up(p(maps[-1]), maps[-1], False) for p in self.pools)]
        f = self.last(torch.cat(pooled, 1))
        features = [f]
        for i in reversed(range(3)):
            f = self.laterals[i](maps[i]) + up(f, maps[i], False)
            features.append(self.outs[i](f))
        features.reverse()
        fused = [features[0], *(up(m, features[0], False) for m in features[1:])]
        return up(self.fusion(torch.cat(fused, 1)), x, False)


class PlainHRNet(nn.Module):
    """HRNetV2's head: all maps at the size of the largest, then 1×1."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.last = nn.Sequential(
            nn.Conv2d(104, 32, 1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, CLASSES, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        maps = self.backbone(x)
        fused = torch.cat([maps[0], *(up(m, maps[0], False) for m in maps[1:])], 1)
        return up(self.last(fused), x, False)


class _Logits(nn.Module):
    """A model that gives logits in a structure, as one that gives a tensor, of the image's size."""

    def __init__(self, model: nn.Module, of: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.model = model
        self.of = of

    def forward(self, x: Tensor) -> Tensor:
        logits = self.of(self.model(x))
        return up(logits, x, False) if logits.shape[2:] != x.shape[2:] else logits


def transformers_model(name: str) -> nn.Module:
    library = pytest.importorskip("transformers")
    stages = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
    if name == "UPerNet-ConvNeXt":
        backbone = library.ConvNextConfig(
            hidden_sizes=[16, 24, 32, 48], depths=[1, 1, 2, 1], **stages
        )
        config = library.UperNetConfig(
            backbone_config=backbone, hidden_size=32, auxiliary_in_channels=32, num_labels=CLASSES
        )
        model = library.UperNetForSemanticSegmentation(config)
    elif name in ("SegFormer", "SegFormer-B2"):
        config = library.SegformerConfig(
            depths=[3, 4, 6, 3] if name == "SegFormer-B2" else [1, 1, 1, 1],
            hidden_sizes=[16, 32, 40, 64],
            decoder_hidden_size=64,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            classifier_dropout_prob=0.0,
            drop_path_rate=0.0,
            num_labels=CLASSES,
        )
        model = library.SegformerForSemanticSegmentation(config)
    elif name == "Data2Vec":
        config = library.Data2VecVisionConfig(
            hidden_size=32,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=64,
            image_size=64,
            patch_size=16,
            out_indices=[1, 2, 3, 4],
            drop_path_rate=0.0,
            num_labels=CLASSES,
            use_auxiliary_head=False,
        )
        model = library.Data2VecVisionForSemanticSegmentation(config)
    else:
        assert name == "MobileViT-DeepLabV3"
        config = library.MobileViTConfig(
            hidden_sizes=[32, 40, 48],
            neck_hidden_sizes=[8, 16, 24, 32, 40, 48, 64],
            num_attention_heads=4,
            aspp_out_channels=32,
            num_labels=CLASSES,
            hidden_dropout_prob=0.0,
            aspp_dropout_prob=0.0,
            classifier_dropout_prob=0.0,
        )
        model = library.MobileViTForSemanticSegmentation(config)
    return _Logits(model, lambda out: out.logits)


def smp_model(name: str, encoder: str) -> nn.Module:
    library = pytest.importorskip("segmentation_models_pytorch")
    if encoder.startswith("tu-"):
        pytest.importorskip("timm")
    options = {
        "UPerNet": {"decoder_channels": 32},
        "Segformer": {"decoder_segmentation_channels": 32},
    }
    return getattr(library, name)(
        encoder, encoder_weights=None, classes=CLASSES, **options.get(name, {})
    )


def torchvision_model(name: str) -> nn.Module:
    library = pytest.importorskip("torchvision")
    function = getattr(library.models.segmentation, name)
    model = function(weights=None, weights_backbone=None, num_classes=CLASSES)
    return _Logits(model, lambda out: out["out"])


PLAIN = {"PSPNet": PlainPSPNet, "UPerNet": PlainUPerNet, "HRNetV2": PlainHRNet}


def build(library: str, name: str, encoder: str = "") -> nn.Module:
    """In evaluation, in float32."""
    if library == "plain":
        model: nn.Module = PLAIN[name]()
    elif library == "transformers":
        model = transformers_model(name)
    elif library == "smp":
        model = smp_model(name, encoder)
    else:
        model = torchvision_model(name)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    return model.eval()

"""Published PSPNets built from their own packages, with random weights, and files as those save."""

import os
import sys
from collections import OrderedDict
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from randomised import randomised
from torch import Tensor, nn


def mmseg_network(name: str) -> tuple[nn.Module, Any]:
    """mmsegmentation's network of a configuration that it ships, and that configuration.

    mmcv-lite has no compiled ops; four modules that PSPNet has no use for import some.
    """
    ops: Any = ModuleType("mmcv.ops")

    def missing(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: None

    ops.__getattr__ = missing
    pytest.importorskip("mmcv", reason="the published extra is not installed")
    sys.modules.setdefault("mmcv.ops", ops)
    pytest.importorskip("mmseg.models", reason="the published extra is not installed")
    import mmseg
    from mmengine.config import Config
    from mmengine.registry import init_default_scope
    from mmseg.registry import MODELS

    init_default_scope("mmseg")
    folder = os.path.join(os.path.dirname(mmseg.__file__), ".mim", "configs", "pspnet")
    config = Config.fromfile(os.path.join(folder, f"{name}.py"))
    text = config.pretty_text
    config.model.pretrained = None
    return randomised(MODELS.build(config.model)).eval(), text


def save_as_mmseg(network: nn.Module, path: Path, version: str, text: str, classes: int) -> None:
    """A checkpoint with what that version of mmsegmentation keeps beside the weights."""
    names = tuple(f"name {i}" for i in range(classes))
    palette = [[i, 2 * i % 256, 7] for i in range(classes)]
    if version == "0.x":
        meta = {"mmseg_version": "0.30.0", "config": text, "CLASSES": names, "PALETTE": palette}
    else:
        dataset = {"classes": names, "palette": palette}
        meta = {"mmengine_version": "0.10.7", "cfg": text, "dataset_meta": dataset, "seed": 1}
    torch.save({"meta": meta, "state_dict": OrderedDict(network.state_dict())}, path)


class CsailNetwork(nn.Module):
    """CSAIL's encoder and decoder."""

    def __init__(self, layers: int, deep_supervision: bool) -> None:
        super().__init__()
        reason = "the published extra is not installed"
        models = pytest.importorskip("mit_semseg.models.models", reason=reason)
        resnet = pytest.importorskip("mit_semseg.models.resnet", reason=reason)
        orig = getattr(resnet, f"resnet{layers}")(pretrained=False)
        self.encoder = models.ResnetDilated(orig, dilate_scale=8)
        decoder = models.PPMDeepsup if deep_supervision else models.PPM
        self.decoder = decoder(150, fc_dim=512 if layers == 18 else 2048)

    def log_probabilities(self, images: Tensor) -> Any:
        """At the resolution of the features, and the auxiliary head's where there is one."""
        self.decoder.use_softmax = False
        return self.decoder(self.encoder(images, return_feature_maps=True))

    def labels(self, images: Tensor) -> Tensor:
        """At the images' size."""
        self.decoder.use_softmax = True
        size = tuple(images.shape[2:])
        maps = self.encoder(images, return_feature_maps=True)
        return self.decoder(maps, segSize=size).argmax(1)

"""The layers that :func:`optimize_for_inference` knows; it refuses all others by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pspfast.models.pspnet import PSPNet
from pspfast.models.pyramid import (
    Head,
    PoolUnlessPooled,
    PriorBatchNorm2d,
    PriorLevel,
    PyramidConv2d,
    PyramidPriors,
)
from pspfast.models.resnet import BasicBlock, Bottleneck, DilatedConv2d, Downsample, ResNetStem

Types = tuple[type[nn.Module], ...]

_CONV: Types = (nn.Conv2d, DilatedConv2d)
_NORM: Types = (nn.BatchNorm2d, PriorBatchNorm2d, nn.SyncBatchNorm)
_RELU: Types = (nn.ReLU,)
# In evaluation they return what they are given.
_DROPOUT: Types = (nn.Dropout2d, nn.Dropout, nn.Identity)


def check_fusable(model: PSPNet) -> None:
    """Raises an error that names the first layer whose effect a fused copy would not have.

    The auxiliary head and the criterion are not looked at: evaluation does not use them.

    Raises:
        TypeError: a layer is of another type than those that are known; a subclass is another type.
        ValueError: a layer has forward hooks, a ``forward`` of its own, or options not supported.
    """
    network: Any = model
    if type(model).forward is not PSPNet.forward:
        raise TypeError(
            f"optimize_for_inference: model: expected the forward of PSPNet, got one of "
            f"{type(model).__name__}"
        )
    _check_call("the model itself", model)
    stem = [_CONV, _NORM, _RELU] * (len(network.layer0) // 3)
    _check_sequence("layer0", network.layer0, ResNetStem, [*stem, (nn.MaxPool2d,)])
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        _check_layer(stage, network.get_submodule(stage), (nn.Sequential,))
        for i, block in enumerate(network.get_submodule(stage)):
            _check_block(f"{stage}.{i}", block)
    if model.use_ppm:
        _check_layer("ppm", network.ppm, (PyramidPriors,))
        for i, level in enumerate(network.ppm.features):
            path = f"ppm.features.{i}"
            types = [(PoolUnlessPooled,), (nn.Conv2d,), _NORM, _RELU]
            _check_sequence(path, level, PriorLevel, types)
            conv = level[1]
            if (conv.kernel_size, conv.stride, conv.padding) != ((1, 1), (1, 1), (0, 0)):
                raise ValueError(_message(f"{path}.1", "a 1×1 convolution of stride 1", conv))
    first = (PyramidConv2d,) if model.use_ppm else _CONV
    _check_sequence("cls", network.cls, Head, [first, _NORM, _RELU, _DROPOUT, _CONV])


def _check_block(path: str, block: Any) -> None:
    _check_layer(path, block, (BasicBlock, Bottleneck))
    for i in (1, 2, 3) if isinstance(block, Bottleneck) else (1, 2):
        _check_layer(f"{path}.conv{i}", getattr(block, f"conv{i}"), _CONV)
        _check_layer(f"{path}.bn{i}", getattr(block, f"bn{i}"), _NORM)
    _check_layer(f"{path}.relu", block.relu, _RELU)
    if block.downsample is not None:
        _check_sequence(f"{path}.downsample", block.downsample, Downsample, [_CONV, _NORM])


def _check_sequence(path: str, layers: Any, of: type[nn.Module], types: Sequence[Types]) -> None:
    _check_layer(path, layers, (of,))
    if len(layers) != len(types):
        raise ValueError(_message(path, f"{len(types)} layers", len(layers)))
    for i, (layer, expected) in enumerate(zip(layers, types, strict=True)):
        _check_layer(f"{path}.{i}", layer, expected)


def _check_layer(path: str, layer: nn.Module, types: Types) -> None:
    if type(layer) not in types:
        names = " or ".join(t.__name__ for t in types)
        raise TypeError(_message(path, names, type(layer).__name__))
    _check_call(path, layer)
    if isinstance(layer, nn.Conv2d) and (
        layer.groups != 1 or layer.padding_mode != "zeros" or isinstance(layer.padding, str)
    ):
        raise ValueError(_message(path, "one group and a padding of a number of zeros", layer))
    if isinstance(layer, _BatchNorm) and layer.running_mean is None:
        raise ValueError(_message(path, "running statistics", "track_running_stats=False"))


def _check_call(path: str, module: nn.Module) -> None:
    """Backward hooks are let pass: there is no backward."""
    hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
    if hooks:
        raise ValueError(_message(path, "no forward hooks, which a fused copy has not", hooks))
    if "forward" in module.__dict__:
        raise ValueError(_message(path, "its class's forward", "one of its own"))


def _message(path: str, expected: str, got: object) -> str:
    return f"optimize_for_inference: model: {path}: expected {expected}, got {got}"

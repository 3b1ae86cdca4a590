"""What optimize_for_inference does not know it refuses by name; nothing is dropped."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from pspfast.models import PSPNet, PyramidPooling, optimize_for_inference


def make_model(**arguments: Any) -> Any:
    model = PSPNet(**{"layers": 18, "stem": "7x7", "classes": 4, **arguments}).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


def assert_equals_the_model(model: PSPNet) -> None:
    x = torch.randn(1, 3, 41, 33)
    with torch.no_grad():
        expected = copy.deepcopy(model).double()(x.double())
    error = (optimize_for_inference(model)(x).double() - expected).norm() / expected.norm()
    assert error <= 5e-5


@pytest.mark.parametrize("use_ppm", [True, False])
@pytest.mark.parametrize("layers", [18, 50])
def test_sync_batch_norm_is_fused(layers: int, use_ppm: bool) -> None:
    model = make_model(layers=layers, stem="deep", use_ppm=use_ppm)
    assert_equals_the_model(nn.SyncBatchNorm.convert_sync_batchnorm(model))


def test_layers_with_other_options_are_fused() -> None:
    model = make_model()
    model.layer1[0].bn1 = nn.BatchNorm2d(64, affine=False, eps=0.1)
    model.layer1[0].conv2 = nn.Conv2d(64, 64, 5, padding=2, bias=True)
    model.cls[3] = nn.Identity()
    model.cls[4] = nn.Conv2d(512, 9, 1, bias=False)
    assert_equals_the_model(model.eval())


class Swish(nn.ReLU):
    def forward(self, input: Tensor) -> Tensor:
        return input * input.sigmoid()


class OtherBottleneck(nn.Module):
    pass


class OtherPSPNet(PSPNet):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


def parametrize_conv(model: Any) -> None:
    parametrizations.weight_norm(model.layer2[0].conv1)


def hook(name: str, kind: str) -> Callable[[Any], Any]:
    def change(model: Any) -> None:
        getattr(model.get_submodule(name), kind)(lambda *args: None)

    return change


def replace_forward(name: str) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        module = model.get_submodule(name)
        module.forward = lambda *args: 2 * type(module).forward(module, *args)

    return change


def put(name: str, module: nn.Module) -> Callable[[Any], None]:
    return lambda model: model.set_submodule(name, module)


CONV = nn.Conv2d(64, 64, 3, padding=1)
FORWARD, PRE = "register_forward_hook", "register_forward_pre_hook"
UNKNOWN: list[tuple[type[Exception], str, Callable[[Any], Any]]] = [
    # Layers of other types.
    (TypeError, "layer0: .* ResNetStem, got Sequential", put("layer0", nn.Sequential(CONV))),
    (TypeError, "layer0.1: .* SyncBatchNorm, got GroupNorm", put("layer0.1", nn.GroupNorm(8, 64))),
    (TypeError, "layer0.2: .* ReLU, got GELU", put("layer0.2", nn.GELU())),
    (TypeError, "layer0.3: .* MaxPool2d, got AvgPool2d", put("layer0.3", nn.AvgPool2d(3, 2, 1))),
    (TypeError, "layer1: .* Sequential, got Identity", put("layer1", nn.Identity())),
    (TypeError, "layer1.1: .* got OtherBottleneck", put("layer1.1", OtherBottleneck())),
    (TypeError, "layer1.0.bn2: .* got InstanceNorm2d", put("layer1.0.bn2", nn.InstanceNorm2d(64))),
    (TypeError, "layer1.0.conv1: .* got ConvTranspose2d",
     put("layer1.0.conv1", nn.ConvTranspose2d(64, 64, 3, padding=1))),
    (TypeError, "layer2.0.conv1: .* got ParametrizedConv2d", parametrize_conv),
    (TypeError, "layer3.1.relu: .* got Swish", put("layer3.1.relu", Swish())),
    (TypeError, "layer2.0.downsample: .* got Sequential",
     put("layer2.0.downsample", nn.Sequential(nn.AvgPool2d(2)))),
    (TypeError, "layer2.0.downsample.1: .* got Identity",
     put("layer2.0.downsample.1", nn.Identity())),
    (TypeError, "ppm: .* PyramidPriors, got PyramidPooling",
     put("ppm", PyramidPooling(512, 128, (1, 2, 3, 6)))),
    (TypeError, "ppm.features.2.0: .* got AdaptiveMaxPool2d",
     put("ppm.features.2.0", nn.AdaptiveMaxPool2d(3))),
    (TypeError, "ppm.features.2.2: .* got GroupNorm",
     put("ppm.features.2.2", nn.GroupNorm(8, 128))),
    (TypeError, "cls: expected Head, got Sequential", put("cls", nn.Sequential(CONV))),
    (TypeError, "cls.0: expected PyramidConv2d, got Conv2d",
     put("cls.0", nn.Conv2d(1024, 512, 3, padding=1))),
    (TypeError, "cls.3: .* got Hardtanh", put("cls.3", nn.Hardtanh())),
    (TypeError, "cls.4: .* got LazyConv2d", put("cls.4", nn.LazyConv2d(4, 1))),
    # Layers of known types that do more or other things.
    (ValueError, "layer0: expected 4 layers, got 5", lambda m: m.layer0.append(nn.ReLU())),
    (ValueError, "cls: expected 5 layers, got 6", lambda m: m.cls.append(nn.ReLU())),
    (ValueError, "layer1.0.conv1: expected one group .* groups=4",
     put("layer1.0.conv1", nn.Conv2d(64, 64, 3, padding=1, groups=4))),
    (ValueError, "layer1.0.conv1: .* padding_mode=reflect",
     put("layer1.0.conv1", nn.Conv2d(64, 64, 3, padding=1, padding_mode="reflect"))),
    (ValueError, "layer1.0.conv1: .* padding=same",
     put("layer1.0.conv1", nn.Conv2d(64, 64, 3, padding="same"))),
    (ValueError, "layer1.0.bn1: expected running statistics, got track_running_stats=False",
     put("layer1.0.bn1", nn.BatchNorm2d(64, track_running_stats=False))),
    (ValueError, "ppm.features.1.1: expected a 1×1 convolution",
     put("ppm.features.1.1", nn.Conv2d(512, 128, 3, padding=1))),
    (ValueError, "the model itself: expected no forward hooks", hook("", FORWARD)),
    (ValueError, "layer3: expected no forward hooks", hook("layer3", PRE)),
    (ValueError, "layer0.1: expected no forward hooks", hook("layer0.1", FORWARD)),
    (ValueError, "layer1.0.relu: expected no forward hooks", hook("layer1.0.relu", PRE)),
    (ValueError, "ppm.features.0: expected no forward hooks", hook("ppm.features.0", FORWARD)),
    (ValueError, "cls.4: expected no forward hooks", hook("cls.4", FORWARD)),
    (ValueError, "the model itself: expected its class's forward", replace_forward("")),
    (ValueError, "layer1.1: expected its class's forward", replace_forward("layer1.1")),
]  # fmt: skip


@pytest.mark.parametrize(("error", "message", "change"), UNKNOWN, ids=[m for _, m, _ in UNKNOWN])
def test_refused_by_name(
    error: type[Exception], message: str, change: Callable[[Any], Any]
) -> None:
    model = make_model()
    change(model)
    with pytest.raises(error, match=f"^optimize_for_inference: model: {message}"):
        optimize_for_inference(model)


def test_a_head_without_pyramid() -> None:
    model = make_model(use_ppm=False)
    model.cls[1] = nn.GroupNorm(8, 512)
    with pytest.raises(TypeError, match=r"model: cls\.1: .*, got GroupNorm"):
        optimize_for_inference(model)


def test_a_subclass_of_the_network() -> None:
    with pytest.raises(TypeError, match="expected the forward of PSPNet, got one of OtherPSPNet"):
        optimize_for_inference(OtherPSPNet(18, classes=4))


def test_what_evaluation_does_not_use_may_be_anything() -> None:
    model = make_model()
    model.aux = nn.Identity()
    model.aux.register_forward_hook(lambda *args: None)
    model.criterion = nn.Identity()
    model.layer1[0].bn1.register_full_backward_hook(lambda *args: None)
    assert_equals_the_model(model)

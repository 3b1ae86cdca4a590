"""Options that other published PSPNets need, against the network in plain functions."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from functional_pspnet import FunctionalPSPNet
from randomised import randomised, relative_difference

from pspfast import PSPNet, optimize_for_inference
from pspfast.config import TrainConfig
from pspfast.models.multi_scale import SlidingProbabilities
from pspfast.training.optimizer import make_optimizer

TINY = {"layers": 18, "stem": "7x7", "head_channels": 8, "aux_channels": 8, "dropout": 0.0}
OPTIONS = [
    {"ppm_channels": 24},
    {"ppm_channels": 20, "bins": (1, 2, 5)},
    {"dilation": "contracted", "block_dilation": "first"},
    {"block_dilation": "first"},
    {"output_stride": 32, "dilation": "contracted", "block_dilation": "first"},
    {"output_stride": 32, "layers": 50, "dilation": "contracted", "align_corners": False},
    {"output_stride": 32, "layers": 34},
    {"aux": False},
    {"in_channels": 5, "stem": "deep"},
    {"in_channels": 1},
]


def oracle(model: PSPNet, options: dict[str, Any], training: bool = False) -> FunctionalPSPNet:
    state = {k: v.double() for k, v in model.state_dict().items()}
    return FunctionalPSPNet(
        state,
        training,
        bins=options.get("bins", (1, 2, 3, 6)),
        align_corners=options.get("align_corners", True),
        contracted=options.get("dilation") == "contracted",
        only_first_dilates=options.get("block_dilation") == "first",
        output_stride=options.get("output_stride", 8),
    )


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("size", [(97, 65), (70, 131)])
def test_evaluation(options: dict[str, Any], size: tuple[int, int]) -> None:
    model = randomised(PSPNet(classes=3, **{**TINY, **options})).eval()
    x = torch.randn(2, options.get("in_channels", 3), *size)
    expected = oracle(model, options)(x.double())[0]
    fast = optimize_for_inference(model)
    with torch.no_grad():
        assert model(x).shape == (2, 3, *size)
        assert relative_difference(model(x), expected) < 1e-5
        assert relative_difference(fast(x), expected) < 1e-5
    assert (model.predict(x) == expected.argmax(1)).double().mean() > 0.999
    assert (fast.predict(x) == expected.argmax(1)).double().mean() > 0.999


@pytest.mark.parametrize("options", [OPTIONS[0], OPTIONS[4], OPTIONS[7], OPTIONS[8]], ids=str)
def test_training(options: dict[str, Any]) -> None:
    model = randomised(PSPNet(classes=4, **{**TINY, **options}))
    x = torch.randn(2, options.get("in_channels", 3), 97, 65)
    y = torch.randint(0, 4, (2, 97, 65))
    main, aux = oracle(model, options, training=True)(x.double())
    _, main_loss, aux_loss = model(x, y)
    assert relative_difference(main_loss, F.cross_entropy(main, y)) < 1e-5
    if options.get("aux", True):
        assert relative_difference(aux_loss, F.cross_entropy(aux, y)) < 1e-5
    else:
        assert aux_loss == 0
        assert not [name for name in model.state_dict() if name.startswith("aux")]
    (main_loss + 0.4 * aux_loss).backward()
    assert all(p.grad is not None for p in model.parameters())
    groups = make_optimizer(model, TrainConfig()).param_groups
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_windows_of_a_larger_stride() -> None:
    model = PSPNet(classes=3, output_stride=32, **TINY).eval()
    with pytest.raises(ValueError, match=r"expected sizes 32n\+1 .* such as \[97, 65\], got"):
        SlidingProbabilities(model=model, crop=(89, 57), stride=(40, 40), window_batch=1)
    protocol = SlidingProbabilities(model=model, crop=(65, 65), stride=(44, 44), window_batch=2)
    assert protocol.predict(torch.randn(1, 3, 70, 90)).shape == (1, 70, 90)


def test_options_make_the_network_again() -> None:
    options = {**TINY, "classes": 7, "bins": [1, 3], "block_dilation": "first", "aux": False}
    model = PSPNet(**options)
    again = PSPNet(**model.options)
    assert again.options == model.options
    assert again.state_dict().keys() == model.state_dict().keys()

from typing import Any

import pytest
import torch
from torch import nn

from pspfast import PSPNet

TINY = {"layers": 18, "stem": "7x7", "head_channels": 8, "aux_channels": 8, "dropout": 0.0}


@pytest.mark.parametrize(("value", "ignore"), [(3, 255), (-1, 255), (255, 0)])
def test_wrong_labels_are_named_before_anything_is_computed(value: int, ignore: int) -> None:
    model = PSPNet(classes=3, criterion=nn.CrossEntropyLoss(ignore_index=ignore), **TINY)
    model.layer0.register_forward_hook(lambda *_: pytest.fail("the network ran"))
    y = torch.zeros(2, 33, 33, dtype=torch.long)
    y[1, 4, 5] = value
    message = rf"y: expected labels 0 to 2 or {ignore} \(ignored\), got \[{value}\]"
    with pytest.raises(ValueError, match=message):
        model(torch.randn(2, 3, 33, 33), y)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": 20}, "layers: expected one of"),
        ({"zoom_factor": 3}, "zoom_factor: expected one of"),
        ({"stem": "5x5"}, "stem: expected one of"),
        ({"dilation": "none"}, "dilation: expected one of"),
        ({"classes": 1}, "classes: expected at least 2, got 1"),
        ({"bins": (1, 2, 3)}, "bins: expected a number of levels that divides 512, .*ppm_channels"),
        ({"bins": ()}, "bins: expected a number of levels"),
        ({"ppm_channels": 0}, "ppm_channels: expected at least 1, got 0"),
        ({"in_channels": 0}, "in_channels: expected at least 1, got 0"),
        ({"block_dilation": "none"}, "block_dilation: expected one of"),
        ({"output_stride": 16}, "output_stride: expected one of"),
        ({"output_stride": 32, "zoom_factor": 4}, r"zoom_factor: expected one of \(8,\), got 4"),
        ({"pretrained": True}, "pretrained: expected False or the path"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^PSPNet: {message}"):
        PSPNet(**{**TINY, **options})


def test_wrong_inputs() -> None:
    model = PSPNet(classes=3, **TINY)
    x = torch.randn(2, 3, 33, 33)
    with pytest.raises(ValueError, match=r"x: expected \[N, 3, H, W\], got \(2, 1, 33, 33\)"):
        model(x[:, :1])
    with pytest.raises(ValueError, match=r"images: expected \[N, 3, H, W\], got \(3, 33, 33\)"):
        model.predict(x[0])
    with pytest.raises(ValueError, match="y: expected labels in training mode, got None"):
        model(x)
    with pytest.raises(ValueError, match=r"y: expected shape \(2, 33, 33\) .* got \(2, 5, 5\)"):
        model(x, torch.zeros(2, 5, 5, dtype=torch.long))

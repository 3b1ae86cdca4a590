"""pspfast.explain."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pspfast


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fuse = nn.Conv2d(24, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        up = F.interpolate(b, a.shape[2:], mode="bilinear")
        return self.norm(self.fuse(torch.cat([a, up], 1))).relu()


MAPS = torch.randn(2, 8, 20, 30), torch.randn(2, 16, 5, 6)


def test_names_what_is_replaced_and_its_costs() -> None:
    with torch.no_grad():
        explanation = pspfast.explain(Head().eval(), *MAPS)
    (fusion, folded) = explanation.applied
    assert (fusion.rule, fusion.where) == ("upsample_concat_conv2d", "fuse")
    assert fusion.replaced == ("upsample_bilinear2d", "cat", "conv2d")
    full, small = 2 * 20 * 30, 2 * 5 * 6
    assert fusion.before.multiplications == full * 24 * 8 * 9
    assert 0 < fusion.after.multiplications - (full * 8 + small * 16) * 8 * 9 < full * 8 * 30
    # Read or written: b, its upsampled map thrice, the concatenation twice, a, weight, bias, out.
    numbers = 2 * 30 * 16 + full * (3 * 16 + 8 + 2 * 24 - 16 + 8) + 24 * 8 * 9 + 8
    assert fusion.before.bytes == 4 * numbers
    assert folded.rule == "folded_conv2d"
    table = str(explanation)
    assert "upsample_bilinear2d + cat + conv2d" in table
    assert "2.1 → " in table


def test_names_what_is_left_and_why() -> None:
    explanation = pspfast.explain(lambda x: F.interpolate(x, (9, 9)).argmax(1), MAPS[1])
    assert not explanation.applied
    assert "upsampled by 'nearest'" in str(explanation)
    assert "no rule applies" in str(explanation)


def test_leaves_buffers_and_random_numbers() -> None:
    model = Head().train()
    before = [b.clone() for b in model.buffers()]
    state = torch.get_rng_state()
    explanation = pspfast.explain(model, *MAPS)
    assert "batch_norm_relu" in [a.rule for a in explanation.applied]
    assert all(map(torch.equal, before, model.buffers()))
    assert torch.equal(state, torch.get_rng_state())

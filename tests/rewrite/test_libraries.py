"""What other libraries do at a model's first call."""

import pytest
import torch
import torch.nn.functional as F
from rewriting import rewritten, rules
from whole_models import build


def test_first_call_of_transformers_models_stays_in_one_graph() -> None:
    pytest.importorskip("transformers")
    model = build("transformers", "SegFormer")
    images, target = torch.randn(2, 3, 64, 96), torch.randint(5, (2, 64, 96))

    def loss(images: torch.Tensor) -> torch.Tensor:
        logits = model(images)
        size = images.shape[2:]
        return F.cross_entropy(F.interpolate(logits, size, mode="bilinear"), target)

    compiled, report = rewritten(loss, fullgraph=True)
    torch.testing.assert_close(compiled(images), loss(images))
    assert "upsample_logits" in rules(report)

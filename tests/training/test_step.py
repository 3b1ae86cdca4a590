"""The gradient of a batch in parts, and losses that are read late."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from pspfast.config import Config, TrainConfig
from pspfast.scores import make_confusion
from pspfast.training.step import Losses, backward


class Pixelwise(nn.Module):
    """Has no statistics of a batch, so that its parts do not matter."""

    def __init__(self) -> None:
        super().__init__()
        self.main, self.aux = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, aux_logits = self.main(images), self.aux(images)
        losses = [F.cross_entropy(x, labels, ignore_index=255) for x in (logits, aux_logits)]
        return logits.argmax(1), *losses


def test_parts_of_any_number_of_labelled_pixels_are_one_batch() -> None:
    images, labels = torch.randn(6, 3, 5, 7), torch.randint(4, (6, 5, 7))
    labels[0, 1:] = 255
    labels[1] = 255
    labels[4:] = 255  # a whole part
    whole = Pixelwise()
    parts = copy.deepcopy(whole)
    _, main_loss, aux_loss = whole(images, labels)
    expected = main_loss + 0.3 * aux_loss
    expected.backward()

    confusion = make_confusion(4, 255, torch.device("cpu"))
    batches = list(zip(images.split(2), labels.split(2), strict=True))
    config = Config(train=TrainConfig(aux_weight=0.3))
    loss = backward(Accelerator(cpu=True), parts, batches, config, confusion)
    torch.testing.assert_close(loss, expected.detach())
    for got, want in zip(parts.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(got.grad, want.grad)
    assert confusion.compute().sum() == (labels != 255).sum()


def test_nothing_labelled_is_no_loss_and_no_gradient() -> None:
    model = Pixelwise()
    batch = torch.randn(2, 3, 5, 7), torch.full((2, 5, 7), 255)
    confusion = make_confusion(4, 255, torch.device("cpu"))
    assert backward(Accelerator(cpu=True), model, [batch], Config(), confusion) == 0
    assert all((parameter.grad == 0).all() for parameter in model.parameters())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_first_loss_that_is_not_finite_is_named(value: float) -> None:
    losses = Losses(Accelerator(cpu=True), iteration=40)
    losses.add(torch.tensor(1.0))
    assert losses.read() == 1
    losses.add(torch.tensor(3.0))
    assert (losses.read(), losses.last) == (2, 3)
    losses.add(torch.tensor(2.0))
    losses.add(torch.tensor(value))
    losses.add(torch.tensor(math.nan))
    with pytest.raises(FloatingPointError, match=f"the loss is {value} in step 44"):
        losses.read()

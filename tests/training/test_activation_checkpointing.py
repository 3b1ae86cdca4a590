"""Blocks that are computed again in backward: same numbers, less that is kept."""

import copy
import gc

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from pspfast import PSPNet
from pspfast.training.activation_checkpointing import checkpoint_activations


def backward(model: PSPNet, images: Tensor, labels: Tensor) -> None:
    _, main_loss, aux_loss = model(images, labels)
    (main_loss + 0.4 * aux_loss).backward()


@pytest.fixture
def model() -> PSPNet:
    return PSPNet(18, classes=3, stem="7x7", head_channels=8, aux_channels=8, dropout=0.0).train()


def test_same_gradients_and_running_statistics(model: PSPNet) -> None:
    images, labels = torch.randn(2, 3, 41, 49), torch.randint(3, (2, 41, 49))
    again = copy.deepcopy(model)
    checkpoint_activations(again)
    buffers = list(again.buffers())
    for _ in range(2):
        backward(model, images, labels)
        backward(again, images, labels)
    for (name, own), other in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(own.grad, other.grad), name
    for (name, own), other in zip(model.named_buffers(), again.named_buffers(), strict=True):
        assert torch.equal(own, other[1]), name
    # DDP holds on to them.
    assert all(a is b for a, b in zip(again.buffers(), buffers, strict=True))
    assert torch.equal(model.predict(images), again.predict(images))


def test_inner_maps_of_blocks_are_not_held(model: PSPNet) -> None:
    """Those between the two convolutions of each block, when the head begins."""
    checkpoint_activations(model)
    maps: list[StorageWeakRef] = []
    alive: list[int] = []

    def remember(module: torch.nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        maps.append(StorageWeakRef(output.untyped_storage()))

    def count(*_: object) -> None:
        gc.collect()
        alive.append(sum(not map.expired() for map in maps))

    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        for block in stage:
            block.conv1.register_forward_hook(remember)
    model.cls.register_forward_pre_hook(count)
    model(torch.randn(1, 3, 33, 33), torch.zeros(1, 33, 33, dtype=torch.long))
    assert len(maps) == 8
    assert alive == [0]

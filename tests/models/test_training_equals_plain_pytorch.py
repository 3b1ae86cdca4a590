"""Thirty steps of training on CamVid: PSPNet, optimizer and schedule of this package against those
of semseg in plain PyTorch."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from functional_pspnet import FunctionalPSPNet
from torch import Tensor

from pspfast import PSPNet
from pspfast.config import TrainConfig
from pspfast.data import SegmentationDataset, TrainTransform, list_file_samples
from pspfast.training.optimizer import make_optimizer, make_schedule

STEPS, BATCH, CROP, CLASSES = 30, 4, 41, 11
MOMENTUM, WEIGHT_DECAY = 0.9, 1e-4
AUX_WEIGHT = 0.4


@pytest.fixture
def batches(camvid: Path) -> list[tuple[Tensor, Tensor]]:
    samples = list_file_samples(camvid / "train.txt")
    dataset = SegmentationDataset(samples, TrainTransform(crop_size=(CROP, CROP)), seed=0)
    items = [dataset[i] for i in range(STEPS * BATCH)]
    return [
        (torch.stack([x for x, _ in group]), torch.stack([y for _, y in group]))
        for group in (items[i : i + BATCH] for i in range(0, len(items), BATCH))
    ]


def ours(model: PSPNet, batches: list[tuple[Tensor, Tensor]], lr: float) -> list[Tensor]:
    options = TrainConfig(lr=lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    optimizer = make_optimizer(model, options)
    schedule = make_schedule(optimizer, STEPS, options.power)
    losses = []
    for images, labels in batches:
        _, main_loss, aux_loss = model(images, labels)
        optimizer.zero_grad()
        (main_loss + AUX_WEIGHT * aux_loss).backward()
        optimizer.step()
        schedule.step()
        losses.append(torch.stack([main_loss, aux_loss]).detach())
    return losses


def plainly(
    state: dict[str, Tensor], batches: list[tuple[Tensor, Tensor]], lr: float
) -> list[Tensor]:
    learnt = [k for k, v in state.items() if v.is_floating_point() and "running" not in k]
    for key in learnt:
        state[key].requires_grad_()
    network = FunctionalPSPNet(state, training=True)
    momenta: dict[str, Tensor] = {}
    losses = []
    for step, (images, labels) in enumerate(batches):
        pair = [F.cross_entropy(x, labels, ignore_index=255) for x in network(images)]
        grads = torch.autograd.grad(pair[0] + AUX_WEIGHT * pair[1], [state[k] for k in learnt])
        rate = lr * (1 - step / STEPS) ** 0.9
        with torch.no_grad():
            for key, grad in zip(learnt, grads, strict=True):
                slope = grad + WEIGHT_DECAY * state[key]
                momenta[key] = MOMENTUM * momenta.get(key, 0) + slope
                factor = 10 if key.startswith(("ppm", "cls", "aux")) else 1
                state[key] -= rate * factor * momenta[key]
        losses.append(torch.stack(pair).detach())
    return losses


# Rounding differs, and training amplifies it: BatchNorm of the pyramid's 1x1 level divides by the
# spread of four values. In float64 differences grow from 1e-15 to 5e-8 in twenty steps, to 2e-2 in
# thirty. float32, which has kernels of its own, begins at 2e-7 and has no twenty such steps; in
# steps a hundredth as large differences grow to 2e-5 in five and stay below 1e-3.
@pytest.mark.parametrize(
    ("dtype", "lr", "tolerances"),
    [
        (torch.float64, 1e-3, [1e-6] * 20 + [1e-1] * (STEPS - 20)),
        (torch.float32, 1e-3, [1e-6, 1e-3]),
        (torch.float32, 1e-5, [1e-6, 1e-5, 1e-4, 1e-4, 1e-4] + [1e-2] * (STEPS - 5)),
    ],
    ids=["float64", "float32 large steps", "float32"],
)
def test_losses_agree_at_every_step(
    batches: list[tuple[Tensor, Tensor]], dtype: torch.dtype, lr: float, tolerances: list[float]
) -> None:
    model = PSPNet(18, classes=CLASSES, dropout=0.0, head_channels=64, aux_channels=64).to(dtype)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    batches = [(images.to(dtype), labels) for images, labels in batches[: len(tolerances)]]
    pairs = zip(ours(model, batches, lr), plainly(state, batches, lr), strict=True)
    differences = [((a - b).abs() / b).max().item() for a, b in pairs]
    assert all(d <= t for d, t in zip(differences, tolerances, strict=True)), differences

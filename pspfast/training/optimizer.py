"""semseg's optimizer and schedule."""

from __future__ import annotations

from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from pspfast.config import TrainConfig
from pspfast.models import PSPNet

STAGES = ("layer0", "layer1", "layer2", "layer3", "layer4")
HEADS = ("ppm", "cls", "aux")


def make_optimizer(model: PSPNet, options: TrainConfig) -> SGD:
    """SGD with one group for each stage and head; heads learn ``head_lr_factor`` times as fast."""
    groups = []
    for name in STAGES + HEADS:
        if getattr(model, name, None) is None:
            continue  # a network without pyramid or auxiliary head
        factor = options.head_lr_factor if name in HEADS else 1.0
        parameters = list(getattr(model, name).parameters())
        groups.append({"name": name, "params": parameters, "lr": options.lr * factor})
    return SGD(groups, momentum=options.momentum, weight_decay=options.weight_decay)


def make_schedule(optimizer: Optimizer, steps: int, power: float, done: int = 0) -> LambdaLR:
    """Poly schedule: after step i of ``steps`` the rate is ``lr * (1 - i / steps) ** power``.

    Args:
        optimizer: its groups have the rates of the first step.
        steps: of the whole run.
        power: of the decay.
        done: steps that were done before; the groups get the rates that follow.
    """
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return LambdaLR(optimizer, lambda step: max(0.0, 1 - step / steps) ** power, done - 1)

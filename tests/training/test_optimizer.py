"""Groups and schedule against semseg's formulas."""

import pytest
import torch

from pspfast import PSPNet
from pspfast.config import TrainConfig
from pspfast.training.optimizer import make_optimizer, make_schedule


@pytest.mark.parametrize("use_ppm", [True, False])
def test_parameter_groups(use_ppm: bool) -> None:
    model = PSPNet(18, classes=3, stem="7x7", use_ppm=use_ppm)
    optimizer = make_optimizer(model, TrainConfig())
    heads = ["ppm", "cls", "aux"] if use_ppm else ["cls", "aux"]
    assert [group["lr"] for group in optimizer.param_groups] == [0.01] * 5 + [0.1] * len(heads)
    for group in optimizer.param_groups:
        assert (group["momentum"], group["weight_decay"]) == (0.9, 1e-4)
        own = {id(p) for p in getattr(model, group["name"]).parameters()}
        assert {id(p) for p in group["params"]} == own
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())


def test_poly_schedule_is_exact() -> None:
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD(
        [{"params": weights[:1], "lr": 0.01}, {"params": weights[1:], "lr": 0.1}]
    )
    steps = 37
    schedule = make_schedule(optimizer, steps, power=0.9)
    for done in range(steps):
        for group, base in zip(optimizer.param_groups, (0.01, 0.1), strict=True):
            assert group["lr"] == base * (1 - done / steps) ** 0.9
        optimizer.step()
        schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0, 0]


def test_schedule_continues() -> None:
    def optimizer() -> torch.optim.Optimizer:
        return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)

    whole, rest = optimizer(), optimizer()
    schedule = make_schedule(whole, 9, power=0.9)
    for _ in range(4):
        whole.step()
        schedule.step()
    continued = make_schedule(rest, 9, power=0.9, done=4)
    for _ in range(5):
        assert rest.param_groups[0]["lr"] == whole.param_groups[0]["lr"]
        for o, s in ((whole, schedule), (rest, continued)):
            o.step()
            s.step()

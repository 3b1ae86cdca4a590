"""Interpolations alone, and what reads upsampled logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rewriting import check, reasons, relative, rewritten, rules
from torch import Tensor, nn

LOGITS = "upsample_logits"
POINTWISE = "pointwise_before_upsample"


class Classifier(nn.Module):
    def __init__(self, channels: int = 9, classes: int = 5) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, (20, 31), mode="bilinear", align_corners=True))


def map_(channels: int = 9) -> Tensor:
    return torch.randn(2, channels, 7, 9, dtype=torch.float64)


def test_pointwise_convolution_goes_before() -> None:
    assert rules(check(Classifier(), map_())) == [POINTWISE]


def test_pointwise_convolution_to_more_channels_stays() -> None:
    report = check(Classifier(4, 5), map_(4))
    assert POINTWISE not in rules(report)
    assert "5 channels would be interpolated" in reasons(report)


def test_pointwise_convolution_of_a_smaller_map_stays() -> None:
    report = check(Classifier(), torch.randn(1, 9, 30, 40, dtype=torch.float64))
    assert not rules(report)
    assert "the map does not grow" in reasons(report)


def test_pointwise_convolution_of_a_map_used_elsewhere_stays() -> None:
    class Shared(Classifier):
        def forward(self, x: Tensor) -> Any:
            up = F.interpolate(x, (20, 31), mode="bilinear")
            return self.conv(up), up

    assert POINTWISE not in rules(check(Shared(), map_()))


def test_interpolation_to_its_own_size_goes() -> None:
    class Same(Classifier):
        def forward(self, x: Tensor) -> Tensor:
            return self.conv(F.interpolate(x, x.shape[2:], mode="bilinear")).relu()

    assert rules(check(Same(), map_())) == ["same_size_upsample"]


def test_interpolation_to_its_own_size_that_is_written_to_stays() -> None:
    class Written(Classifier):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 2
            same = F.interpolate(y, x.shape[2:], mode="bilinear")
            same[:, 1:].mul_(2)
            return self.conv(same) + self.conv(y)

    report = check(Written(), map_())
    assert not rules(report)
    assert "written to" in reasons(report)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(
    "labels",
    [
        lambda z: z.argmax(1),
        lambda z: z.argmax(dim=-3),
        lambda z: z.max(1)[1],
        lambda z: z.softmax(1).argmax(1),
        lambda z: F.softmax(z, dim=1).max(dim=1).indices,
    ],
)
def test_labels(labels: Callable[[Tensor], Tensor], dynamic: bool) -> None:
    def predict(z: Tensor) -> Tensor:
        return labels(F.interpolate(z, (29, 37), mode="bilinear", align_corners=False))

    compiled, report = rewritten(predict, dynamic=dynamic)
    z = map_()
    assert torch.equal(compiled(z), predict(z))
    assert rules(report) == [LOGITS]


def test_labels_after_a_classifier_of_the_upsampled_map() -> None:
    model = Classifier().double()
    compiled, report = rewritten(lambda x: model(x).argmax(1))
    x = map_()
    assert torch.equal(compiled(x), model(x).argmax(1))
    assert rules(report) == [POINTWISE, LOGITS]


@pytest.mark.parametrize(
    ("read", "reason"),
    [
        (lambda up: (up.argmax(1), up), "used elsewhere"),
        (lambda up: up.argmax(1, keepdim=True), "keeps the dimension"),
        (lambda up: tuple(up.max(1)), "more of the maximum"),
        (lambda up: up.max(1)[0], "the maximum itself"),
        (lambda up: up.argmax(2), None),
        (lambda up: up.argmax(), None),
        (lambda up: up.softmax(3), None),
        (lambda up: up.softmax(1), "gradients may be asked for"),
    ],
)
def test_other_readings_stay(read: Callable[[Tensor], Any], reason: str | None) -> None:
    def predict(z: Tensor) -> Any:
        return read(F.interpolate(z, (29, 37), mode="bilinear"))

    compiled, report = rewritten(predict)
    z = map_()
    torch.testing.assert_close(compiled(z), predict(z))
    assert not rules(report)
    assert (reason or "") in reasons(report)


def test_labels_of_nearest_logits_stay() -> None:
    def predict(z: Tensor) -> Tensor:
        return F.interpolate(z, (29, 37), mode="nearest").argmax(1)

    compiled, report = rewritten(predict)
    z = map_()
    assert torch.equal(compiled(z), predict(z))
    assert not rules(report) and "'nearest'" in reasons(report)


def test_probabilities() -> None:
    def predict(z: Tensor) -> Tensor:
        return F.interpolate(z, (29, 37), mode="bilinear").softmax(1)

    compiled, report = rewritten(predict)
    z = map_()
    with torch.no_grad():
        torch.testing.assert_close(compiled(z), predict(z))
    assert rules(report) == [LOGITS]


def test_probabilities_in_half_precision_stay() -> None:
    def predict(z: Tensor) -> Tensor:
        return F.interpolate(z, (29, 37), mode="bilinear").softmax(1)

    compiled, report = rewritten(predict)
    z = map_().bfloat16()
    with torch.no_grad():
        assert torch.equal(compiled(z), predict(z))
    assert "the result would be torch.float32" in reasons(report)


def targets(ignored: int = -100) -> Tensor:
    target = torch.randint(0, 5, (2, 29, 37))
    target[:, 3:7] = ignored
    return target


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ignore_index": 255},
        {"ignore_index": 255, "label_smoothing": 0.1},
        {"weight": torch.tensor([0.5, 1, 2, 0, 3], dtype=torch.float64)},
    ],
    ids=["plain", "ignored", "smoothed", "weighted"],
)
def test_loss(options: dict[str, Any]) -> None:
    def step(z: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(
            F.interpolate(z, target.shape[1:], mode="bilinear"), target, **options
        )

    target = targets(options.get("ignore_index", -100))
    compiled, report = rewritten(step)
    pairs = []
    for function in (compiled, step):
        z = map_(5) if not pairs else pairs[0][0].detach().clone()
        z.requires_grad_()
        loss = function(z, target)
        loss.backward()
        pairs.append((z, loss, z.grad))
    for ours, eager in zip(*pairs, strict=True):
        assert relative(ours, eager) < 1e-12
    assert rules(report) == [LOGITS]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_loss_of_logits_in_half_precision(dtype: torch.dtype) -> None:
    def step(z: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(F.interpolate(z, target.shape[1:], mode="bilinear"), target)

    z, target = map_(5).to(dtype), targets()
    exact = z.double().requires_grad_()
    step(exact, target).backward()
    compiled, report = rewritten(step)
    z.requires_grad_()
    loss = compiled(z, target)
    loss.backward()
    assert loss.dtype == dtype
    # One rounding each.
    assert relative(loss, step(exact, target)) < torch.finfo(dtype).eps
    assert relative(z.grad, exact.grad) < torch.finfo(dtype).eps
    assert rules(report) == [LOGITS]


@pytest.mark.parametrize("weight", [None, torch.tensor([0.0, 1, 1, 1, 1], dtype=torch.float64)])
def test_loss_without_a_pixel_that_counts(weight: Tensor | None) -> None:
    def step(z: Tensor, target: Tensor) -> Tensor:
        up = F.interpolate(z, target.shape[1:], mode="bilinear")
        return F.cross_entropy(up, target, weight, ignore_index=255)

    target = torch.full((2, 29, 37), 255)
    if weight is not None:
        target[0] = 0
    compiled, report = rewritten(step)
    gradients = []
    for function in (compiled, step):
        z = torch.ones(2, 5, 7, 9, dtype=torch.float64, requires_grad=True)
        loss = function(z, target)
        assert loss.isnan()
        loss.backward()
        gradients.append(z.grad)
    if weight is None:
        assert torch.equal(*gradients)
    assert rules(report) == [LOGITS]


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_other_reductions_stay(reduction: str) -> None:
    def step(z: Tensor, target: Tensor) -> Tensor:
        up = F.interpolate(z, target.shape[1:], mode="bilinear")
        return F.cross_entropy(up, target, reduction=reduction)

    compiled, report = rewritten(step)
    z, target = map_(5), targets()
    assert torch.equal(compiled(z, target), step(z, target))
    assert not rules(report) and "not the mean" in reasons(report)


def test_probabilities_as_targets_stay() -> None:
    def step(z: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(F.interpolate(z, target.shape[2:], mode="bilinear"), target)

    compiled, report = rewritten(step)
    z, target = map_(5), torch.rand(2, 5, 29, 37, dtype=torch.float64)
    assert torch.equal(compiled(z, target), step(z, target))
    assert not rules(report) and "no class numbers" in reasons(report)


def test_loss_of_logits_that_are_returned_too() -> None:
    def step(z: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        up = F.interpolate(z, target.shape[1:], mode="bilinear")
        return F.cross_entropy(up, target), up

    compiled, report = rewritten(step)
    z, target = map_(5), targets()
    torch.testing.assert_close(compiled(z, target), step(z, target))
    assert rules(report) == [LOGITS]

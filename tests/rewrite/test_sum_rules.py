"""Sums of upsampled maps, alone and before a convolution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rewriting import check, reasons, rewritten, rules
from torch import Tensor, nn

SUM = "summed_upsample"
CONVOLUTION = "upsample_concat_conv2d"
SIZE = (14, 18)
HALF, QUARTER = (7, 9), (4, 5)


def up(x: Tensor, mode: str = "bilinear", **options: Any) -> Tensor:
    return F.interpolate(x, SIZE, mode=mode, **options)


def maps(*sizes: tuple[int, int], batch: int = 2) -> list[Tensor]:
    return [torch.randn(batch, 6, *size, dtype=torch.float64) for size in sizes]


class Reader(nn.Module):
    """A function of maps, then a ReLU, so that no result is a match's own, or a convolution."""

    def __init__(self, function: Callable[..., Tensor], k: int | None = None) -> None:
        super().__init__()
        self.function = function
        self.after = nn.Conv2d(6, 5, k, padding=k // 2) if k else nn.ReLU()

    def forward(self, *maps: Tensor) -> Any:
        return self.after(self.function(*maps))


def pyramid(add: Callable[[Sequence[Tensor]], Tensor], **options: Any) -> Callable[..., Tensor]:
    """The first map, of the full size, and the others upsampled."""
    return lambda *maps: add([maps[0], *(up(m, **options) for m in maps[1:])])


ADDITIONS = {
    "stack": lambda maps: torch.stack(maps).sum(dim=0),
    "stack after the channels": lambda maps: torch.stack(maps, -1).sum(-1),
    "sum": sum,
    "nested": lambda maps: maps[1] + (maps[0] + sum(maps[2:])),
    "in place": lambda maps: (maps[1] + maps[0]).add_(maps[2]).add_(maps[3]),
}


@pytest.mark.parametrize("add", ADDITIONS.values(), ids=ADDITIONS)
def test_one_interpolation_of_a_sum(add: Callable[[Sequence[Tensor]], Tensor]) -> None:
    report = check(Reader(pyramid(add)), *maps(SIZE, HALF, HALF, HALF))
    assert set(rules(report)) == {SUM}
    replaced = [name for a in report.applications for name in a.replaced]
    assert replaced.count("upsample_bilinear2d") >= 3


@pytest.mark.parametrize(
    "options", [{"mode": "bilinear", "align_corners": True}, {"mode": "nearest"}]
)
def test_other_ways_to_interpolate(options: dict[str, Any]) -> None:
    model = Reader(pyramid(ADDITIONS["stack"], **options))
    inputs = [m.contiguous(memory_format=torch.channels_last) for m in maps(SIZE, HALF, HALF)]
    assert rules(check(model, *inputs)) == [SUM]


def test_nothing_of_the_full_size_and_two_sizes() -> None:
    model = Reader(lambda a, b, c, d: up(a) + up(b) + up(c) + up(d))
    assert rules(check(model, *maps(HALF, QUARTER, QUARTER, HALF))) == [SUM, SUM]


def test_symbolic_sizes() -> None:
    def add(a: Tensor, b: Tensor) -> Tensor:
        return (a + F.interpolate(b, a.shape[2:]) + F.interpolate(b * 2, a.shape[2:])).relu()

    compiled, report = rewritten(add, dynamic=True, fullgraph=True)
    for size in (SIZE, (20, 31)):
        inputs = maps(size, HALF)
        torch.testing.assert_close(compiled(*inputs), add(*inputs))
    assert rules(report) == [SUM]


UNFIT_SUMS = {
    "two sizes": (lambda a, b: up(a) + up(b), (HALF, QUARTER)),
    "two modes": (lambda a, b: up(a) + up(b, "nearest"), (HALF, HALF)),
    "two corners": (lambda a, b: up(a) + up(b, align_corners=True), (HALF, HALF)),
    "a factor": (lambda a, b: torch.add(up(a), up(b), alpha=2), (HALF, HALF)),
    "broadcast": (lambda a, b: up(a) + up(b[:, :1]), (HALF, HALF)),
    "a sum of rows": (lambda a, b: torch.stack([up(a), up(b)]).sum(3), (HALF, HALF)),
    "a kept dimension": (
        lambda a, b: torch.stack([up(a), up(b)]).sum(0, keepdim=True).squeeze(0),
        (HALF, HALF),
    ),
    "a mean": (lambda a, b: torch.stack([up(a), up(b)]).mean(0), (HALF, HALF)),
    "another dtype": (
        lambda a, b: torch.stack([up(a), up(b)]).sum(0, dtype=torch.float32),
        (HALF, HALF),
    ),
}


@pytest.mark.parametrize("case", UNFIT_SUMS.values(), ids=UNFIT_SUMS)
def test_other_sums_stay(case: tuple[Callable[..., Tensor], Any]) -> None:
    function, sizes = case
    assert not rules(check(Reader(function), *maps(*sizes)))


def test_maps_that_shrink_stay() -> None:
    report = check(Reader(lambda a, b: up(a) + up(b)), *maps((20, 31), (20, 31)))
    assert not rules(report)
    assert f"{SUM}: the maps do not grow" in reasons(report)


def test_upsampled_maps_used_elsewhere_stay() -> None:
    def shared(a: Tensor, b: Tensor) -> Any:
        first, second = up(a), up(b)
        return torch.cat([first + second, first.exp()], 1)

    assert not rules(check(Reader(shared), *maps(HALF, HALF)))


def test_a_stack_used_elsewhere_stays() -> None:
    def shared(a: Tensor, b: Tensor) -> Any:
        stack = torch.stack([up(a), up(b)])
        return stack.sum(0) + stack.amax(0)

    assert not rules(check(Reader(shared), *maps(HALF, HALF)))


def test_a_map_written_before_the_sum_stays() -> None:
    def written(a: Tensor, b: Tensor) -> Tensor:
        small = a * 2
        view = small[:, 1:]
        first = up(small)
        view.mul_(3)
        return first + up(b) + view.sum()

    report = check(Reader(written), *maps(HALF, HALF))
    assert not rules(report)
    assert "writes into a tensor of it" in reasons(report)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("add", [sum, ADDITIONS["stack"]], ids=["sum", "stack"])
def test_convolution_of_a_sum(k: int, add: Callable[[Sequence[Tensor]], Tensor]) -> None:
    model = Reader(lambda *maps: add([up(m) for m in maps]), k)
    report = check(model, *maps(HALF, QUARTER, QUARTER, batch=1))
    assert rules(report) == [SUM, CONVOLUTION]


def test_convolution_of_a_sum_follows_its_weight() -> None:
    model = Reader(lambda *maps: sum(map(up, maps)), 3).double()
    compiled, report = rewritten(model)
    inputs = maps(HALF, QUARTER)
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(compiled(*inputs), model(*inputs))
            model.after.weight.mul_(-2)
    assert rules(report) == [CONVOLUTION]


def test_convolution_of_a_sum_with_a_map_of_the_full_size_stays() -> None:
    report = check(Reader(pyramid(sum), 3), *maps(SIZE, HALF, HALF))
    assert rules(report) == [SUM]
    assert f"{CONVOLUTION}: 125% of the multiplications would be left" in reasons(report)


def test_convolution_of_a_sum_used_elsewhere_stays() -> None:
    class Shared(Reader):
        def forward(self, *maps: Tensor) -> Any:
            total = self.function(*maps)
            return self.after(total), total.exp()

    report = check(Shared(lambda a, b: up(a) + up(b), 3), *maps(HALF, QUARTER))
    assert not rules(report)
    assert f"{CONVOLUTION}: the sum is used elsewhere too" in reasons(report)

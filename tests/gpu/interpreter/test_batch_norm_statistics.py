"""The running statistics of batch_norm_relu in the interpreter."""

from itertools import product

import pytest
import torch
from torch import Tensor

from pspfast.kernels.batch_norm_statistics import (
    batch_norm_merge_statistics,
    batch_norm_statistics,
)


def a_map(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("given", list(product((True, False), repeat=3)), ids=str)
def test_running_statistics(given: tuple[bool, ...]) -> None:
    """Of one process, and merged from three, of which one has nothing."""
    x = a_map((3, 20, 5, 7)) + 1000
    var, mean = torch.var_mean(x.double(), (0, 2, 3), correction=0)
    count = torch.tensor([3.0 * 5 * 7], dtype=torch.float64)
    parts = [batch_norm_statistics(part, None, None, None, 0.0) for part in x.split((2, 0, 1))]
    for moved in (batch_norm_statistics, batch_norm_merge_statistics):
        before = torch.randn(20), torch.rand(20).double(), torch.tensor(41)
        running = [t.clone() for t in before]
        passed = [t if is_given else None for t, is_given in zip(running, given, strict=True)]
        first = x if moved is batch_norm_statistics else torch.stack(parts)
        statistics = moved(first, *passed, 0.25)
        for got, expected in zip(statistics.split((20, 20, 1)), (mean, var, count), strict=True):
            torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=0)
        towards = mean, var * count / (count - 1), None
        for is_given, old, new, to in zip(given, before, running, towards, strict=True):
            if not is_given:
                assert torch.equal(old, new)
            elif to is None:
                assert new == 42
            else:
                torch.testing.assert_close(
                    new.double(), torch.lerp(old.double(), to, 0.25), rtol=1e-5, atol=1e-5
                )


def test_nothing_moves_towards_the_variance_of_one_value() -> None:
    running = torch.zeros(5), torch.ones(5), torch.tensor(0)
    batch_norm_statistics(a_map((1, 5, 1, 1)), *running, 0.1)
    assert (running[0] == 0).all() and (running[1] == 1).all() and running[2] == 1

"""The emulation finds the mistakes that it is there for."""

from collections.abc import Callable

import pytest


@pytest.mark.parametrize("sanitizers", ["thread", "address,undefined"])
@pytest.mark.parametrize("mode", ["correct", "grid_too_large"])
def test_no_false_alarm(sanitized: Callable[..., str], sanitizers: str, mode: str) -> None:
    assert sanitized("harness", sanitizers, mode) == ""


def test_barrier_that_some_never_reach(sanitized: Callable[..., str]) -> None:
    report = sanitized("harness", "thread", "barrier_not_reached")
    assert report.startswith("emulation: a barrier was not reached by all threads of block")


def test_left_out_barrier(sanitized: Callable[..., str]) -> None:
    assert "data race" in sanitized("harness", "thread", "without_barrier")


def test_left_out_barrier_reads_nan(sanitized: Callable[..., str]) -> None:
    assert sanitized("harness", "address,undefined", "without_barrier") == ""


def test_out_of_bounds(sanitized: Callable[..., str]) -> None:
    report = sanitized("harness", "address,undefined", "out_of_bounds")
    assert "heap-buffer-overflow" in report

"""The emulation finds the mistakes that it is there for."""

import ctypes
from collections.abc import Callable

import pytest
import torch


@pytest.mark.parametrize("sanitizers", ["thread", "address,undefined"])
@pytest.mark.parametrize("mode", ["correct", "grid_too_large", "empty_grid"])
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


@pytest.mark.parametrize("skipped", [0, 63])
def test_unwritten_element(emulated: Callable[[str], ctypes.CDLL], skipped: int) -> None:
    """As in the tests of the ops, results are NaN before a launch and compared with numbers."""

    def copied(skipped: int) -> torch.Tensor:
        result = torch.full_like(given, torch.nan)
        pointers = (ctypes.c_void_p(t.data_ptr()) for t in (given, result))
        assert emulated("harness").copy_all_but_one(*pointers, skipped) == 0
        return result

    given = torch.randn(64)
    torch.testing.assert_close(copied(skipped=-1), given)
    with pytest.raises(AssertionError, match="Mismatched elements: 1 / 64"):
        torch.testing.assert_close(copied(skipped), given)

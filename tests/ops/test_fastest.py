"""The choice between implementations: timed where it may be, by rule where it must."""

from collections.abc import Callable, Iterator

import pytest
import torch
import triton.testing
from torch import distributed, multiprocessing

from pspfast.ops.common import fastest as choice
from pspfast.ops.common.fastest import fastest, size_class


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Candidates return their times; the list collects what was timed."""
    calls: list[float] = []

    def do_bench(run: Callable[[], float], **_: int) -> float:
        calls.append(run())
        return calls[-1]

    monkeypatch.setattr(choice, "_choices", {})
    monkeypatch.setattr(triton.testing, "do_bench", do_bench)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 1000)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 600)
    # The tests of ops ask for deterministic algorithms, whose allocations hold NaN.
    torch.use_deterministic_algorithms(False)
    yield calls


CANDIDATES = {"a": lambda: 2.0, "b": lambda: 1.0}


def test_the_shortest_time_is_chosen_and_kept(timed: list[float]) -> None:
    assert fastest("key", CANDIDATES, 0) == "b"
    assert fastest("key", CANDIDATES, 0) == "b"
    assert timed == [2.0, 1.0]
    assert fastest("other key", {"a": lambda: 2.0, "b": lambda: 3.0}, 0) == "a"
    assert timed == [2.0, 1.0, 2.0, 3.0]


def test_nothing_is_timed_while_a_graph_is_captured(
    timed: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        assert fastest("key", CANDIDATES, 0) == "a"
        assert timed == []
    assert fastest("key", CANDIDATES, 0) == "b"


def test_deterministic_algorithms_are_chosen_by_rule(timed: list[float]) -> None:
    assert fastest("timed before", CANDIDATES, 0) == "b"
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert fastest("key", CANDIDATES, 0) == "a"
    assert fastest("timed before", CANDIDATES, 0) == "a"
    assert timed == [2.0, 1.0]


def test_timing_does_not_raise_the_peak(timed: list[float]) -> None:
    assert fastest("key", CANDIDATES, 401) == "a"
    assert timed == []
    assert fastest("key", CANDIDATES, 400) == "b"


def test_size_classes() -> None:
    sizes = [0, 1, 2, 3, 4, 5, 1023, 1024, 1025]
    assert [size_class(size) for size in sizes] == [1, 1, 2, 4, 4, 8, 1024, 1024, 2048]


def _choose(rank: int, rendezvous: str, found: multiprocessing.SimpleQueue) -> None:
    """Rank 1 finds "a" the fastest, rank 0 "b"; each meets a key that the other does not."""
    distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2)
    triton.testing.do_bench = lambda run, **_: run()
    torch.cuda.is_current_stream_capturing = lambda: False
    torch.cuda.max_memory_allocated = torch.cuda.memory_allocated = lambda: 0
    own = (
        {"b": lambda: 1.0, "a": lambda: 2.0} if rank == 0 else {"b": lambda: 2.0, "a": lambda: 1.0}
    )
    choices = {key: fastest(key, own, 0) for key in ("x", "y", f"of rank {rank}")}
    distributed.barrier()
    # One that this process times when the other has published already.
    choices["x again"] = fastest("x", own, 0)
    found.put((rank, choices))
    distributed.destroy_process_group()


def test_processes_take_one_choice_without_waiting(tmp_path) -> None:
    context = multiprocessing.get_context("spawn")
    found = context.SimpleQueue()
    rendezvous = f"file://{tmp_path / 'rendezvous'}"
    processes = [context.Process(target=_choose, args=(rank, rendezvous, found)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    # What one has found fits into the pipe.
    results = dict(found.get() for _ in processes)
    assert all(results[0][key] == results[1][key] for key in ("x", "y", "x again"))
    assert results[0]["of rank 0"] == "b" and results[1]["of rank 1"] == "a"

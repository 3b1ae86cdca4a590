from collections.abc import Callable, Iterator

import pytest
import torch
import triton.testing

from pspfast.ops import _fastest


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Candidates return their times; the list collects what was timed."""
    calls: list[float] = []

    def do_bench(run: Callable[[], float], **_: int) -> float:
        calls.append(run())
        return calls[-1]

    monkeypatch.setattr(_fastest, "_choices", {})
    monkeypatch.setattr(triton.testing, "do_bench", do_bench)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    yield calls


def test_the_shortest_time_is_chosen_and_kept(timed: list[float]) -> None:
    candidates = {"a": lambda: 2.0, "b": lambda: 1.0}
    assert _fastest.fastest("key", candidates) == "b"
    assert _fastest.fastest("key", candidates) == "b"
    assert timed == [2.0, 1.0]
    assert _fastest.fastest("other key", {"a": lambda: 2.0, "b": lambda: 3.0}) == "a"
    assert timed == [2.0, 1.0, 2.0, 3.0]


def test_nothing_is_timed_while_a_graph_is_captured(
    timed: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    candidates = {"a": lambda: 2.0, "b": lambda: 1.0}
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        assert _fastest.fastest("key", candidates) == "a"
        assert timed == []
    assert _fastest.fastest("key", candidates) == "b"

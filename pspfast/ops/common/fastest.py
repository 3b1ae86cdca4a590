"""Which of several implementations is fastest on this GPU, timed once for each class of sizes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping

import torch
from torch import distributed

_choices: dict[Hashable, str] = {}


def size_class(size: int) -> int:
    """The next power of two: sizes up to it share a choice."""
    return 1 << max(size - 1, 0).bit_length()


def fastest(
    key: Hashable, candidates: Mapping[str, Callable[[], object]], scratch_bytes: int
) -> str:
    """The name of the fastest candidate.

    The first candidate is the rule, taken where a stopwatch must not decide:
    ``torch.use_deterministic_algorithms(True)`` asks for the same bits in every run, a graph is
    being captured, or the memory for timing would raise the peak of what is allocated. So the first
    step of a run is by the rule, and later steps find room below its peak.

    Several processes share their choices through the store of the default process group: the first
    that has timed decides for all, and none waits for another.

    Args:
        key: what the times depend on; for an equal one nothing is timed again. Its text is the same
            in all processes.
        candidates: functions that enqueue work on the current GPU, by name.
        scratch_bytes: that a candidate allocates.
    """
    rule = next(iter(candidates))
    if torch.are_deterministic_algorithms_enabled() or torch.cuda.is_current_stream_capturing():
        return rule
    if key not in _choices:
        choice = _published(key)
        if choice is None:
            if scratch_bytes > _room_below_peak():
                return rule
            choice = _publish(key, _timed(candidates))
        _choices[key] = choice
    return _choices[key]


def _timed(candidates: Mapping[str, Callable[[], object]]) -> str:
    from triton.testing import do_bench

    # Tuning happens in the first call, which is not timed.
    times = {name: do_bench(run, warmup=5, rep=20) for name, run in candidates.items()}
    return min(times, key=times.__getitem__)


def _room_below_peak() -> int:
    """Bytes that can be allocated on the current GPU before its peak is reached again."""
    return torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()


def _store() -> distributed.Store | None:
    if not (distributed.is_available() and distributed.is_initialized()):
        return None
    return distributed.distributed_c10d._get_default_store()


def _published(key: Hashable) -> str | None:
    """What another process has chosen."""
    store = _store()
    if store is None or not store.check([_name(key)]):
        return None
    return store.get(_name(key)).decode()


def _publish(key: Hashable, choice: str) -> str:
    """The choice of the process that published first."""
    store = _store()
    return choice if store is None else store.compare_set(_name(key), "", choice).decode()


def _name(key: Hashable) -> str:
    return f"pspfast.fastest{key}"

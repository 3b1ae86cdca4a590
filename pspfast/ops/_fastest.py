"""Which of several implementations is fastest on this GPU, timed once for each set of shapes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping

import torch

_choices: dict[Hashable, str] = {}


def fastest(key: Hashable, candidates: Mapping[str, Callable[[], object]]) -> str:
    """The name of the fastest candidate.

    Args:
        key: what the times depend on; for an equal one nothing is timed again.
        candidates: functions that enqueue work on the current GPU, by name. Where nothing can be
            timed, because a graph is being captured, the first is taken, for this time.
    """
    if key not in _choices:
        if torch.cuda.is_current_stream_capturing():
            return next(iter(candidates))
        from triton.testing import do_bench

        # Tuning happens in the first call, which is not timed.
        times = {name: do_bench(run, warmup=5, rep=20) for name, run in candidates.items()}
        _choices[key] = min(times, key=times.__getitem__)
    return _choices[key]

"""Small batches fill a GPU: every memory-bound CUDA kernel has at least two blocks for each of the
132 multiprocessors of an H100."""

import pytest

from tools.network_calls import Call, network_calls

ENOUGH = 2 * 132
# One block adds a few sums.
SMALL = "mean_kernel"


def cuda_calls(batch: int) -> list[Call]:
    return [call for call in network_calls(batch) if call.cuda is not None]


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_two_blocks_a_multiprocessor(batch: int) -> None:
    calls = cuda_calls(batch)
    assert len(calls) > 50
    for call in calls:
        assert call.cuda is not None
        for launch in call.cuda():
            if SMALL not in launch.kernel:
                assert launch.blocks >= ENOUGH, f"{call.op}: {launch}"

"""Small batches fill a GPU: every memory-bound kernel has at least two blocks for each of the 132
multiprocessors of an H100."""

import re

import pytest

from tools.machine_code import noted_launches
from tools.network_calls import Call, network_calls

ENOUGH = 2 * 132
# They add or merge few sums: a value for each channel, or for each block before them.
SMALL = {"mean_loss_kernel", "merge_moments_kernel", "merge_statistics_kernel", "add_sums_kernel"}
# One block adds a few sums; and 134 those of one image's 19 classes in float32, less than 1 MB.
SMALL_CUDA = re.compile(r"\bmean_kernel|\badd_rows_kernel<float")
every_batch = pytest.mark.parametrize("batch", [1, 2, 4])


def cuda_calls(batch: int, classes: int) -> list[Call]:
    return [call for call in network_calls(batch, classes=classes) if call.cuda is not None]


@every_batch
@pytest.mark.parametrize("classes", [19, 150])
def test_two_blocks_a_multiprocessor(batch: int, classes: int) -> None:
    calls = cuda_calls(batch, classes)
    assert len(calls) > 50
    for call in calls:
        assert call.cuda is not None
        for launch in call.cuda():
            if not SMALL_CUDA.search(launch.kernel):
                assert launch.blocks >= ENOUGH, f"{call.op}: {launch}"


@every_batch
def test_two_programs_a_multiprocessor(batch: int) -> None:
    seen = set()
    for call in network_calls(batch):
        if not call.triton_bytes:  # A convolution's tiles are tuned.
            continue
        with noted_launches() as launches:
            call.triton()
        for launch in launches.taken():
            name = launch.kernel.__name__
            seen.add(name)
            if name not in SMALL:
                assert launch.programs is not None
                assert launch.programs >= ENOUGH, f"{call.op}: {name}, {launch.programs} programs"
    assert len(seen - SMALL) >= 12

"""As many blocks on a multiprocessor as the CUDA kernels' launch bounds promise, with the shared
memory that PSPNet50's launches ask for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tools.network_calls import network_calls
from tools.occupancy import CHIPS, resident_blocks

SOURCES = Path(__file__).parents[2] / "csrc/cuda"
# The five blocks of upsample_cross_entropy_backward.cuh are those of the 228 KB of sm_90; sm_80
# has 164 KB.
LOSS_BACKWARD_BLOCKS_ON_SM_80 = 4


@pytest.mark.parametrize("arch", CHIPS)
def test_launch_bounds_are_kept(cuda_code: Callable[..., list], arch: int) -> None:
    launches = {launch for call in network_calls() if call.cuda for launch in call.cuda()}
    assert {launch.stem for launch in launches} == {path.stem for path in SOURCES.glob("*.cu")}
    for launch in launches:
        (code,) = [c for c in cuda_code(launch.stem, arch) if c.name == launch.kernel]
        assert launch.threads == code.threads, code.name
        shared = code.static_shared + launch.shared_bytes
        assert shared <= CHIPS[arch].shared_of_block, code.name
        least = max(code.min_blocks, 1)
        if arch == 80 and "loss_bwd_kernel" in code.name:
            least = LOSS_BACKWARD_BLOCKS_ON_SM_80
        blocks = resident_blocks(arch, code.registers, code.threads, shared)
        assert blocks >= least, f"{code.name}: {blocks} of {least}"

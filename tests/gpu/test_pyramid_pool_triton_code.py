"""The machine code of pyramid_pool's Triton kernels, as its launchers ask for it: no spills,
16-byte accesses, little shared memory."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from pspfast.kernels import pyramid_pool
from tools.machine_code import noted_launches

PYRAMID = (1, 2, 3, 6)
DTYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
# What an sm_89 multiprocessor lends a block, the least of all chips since sm_80.
MAX_SHARED_BYTES = 99 * 1024
# To keep one more program resident, ptxas saves a few registers outside of inner loops, those of
# the forward outside of all: five on sm_100, with Triton 3.6 up to eight.
MAX_STACK_BYTES = 32


# Channels are innermost in channels_last, whatever the width.
LAYOUTS = {"contiguous-64": (64, False), "contiguous-60": (60, False), "channels_last": (60, True)}
every_layout = pytest.mark.parametrize(("width", "channels_last"), LAYOUTS.values(), ids=LAYOUTS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=DTYPES.values())
every_arch = pytest.mark.parametrize("arch", [80, 90, 100])


@cache
def compiled(width: int, channels_last: bool, dtype: torch.dtype, arch: int) -> list[Any]:
    """Forward and backward."""
    x = torch.empty(16, 2048, 60, width, dtype=dtype, device="meta")
    x = x.to(memory_format=torch.channels_last) if channels_last else x
    with noted_launches() as launches:
        pooled = pyramid_pool.pyramid_pool_forward(x, PYRAMID)
        pyramid_pool.pyramid_pool_backward(pooled, PYRAMID, 60, width, channels_last)
        return [launch.compiled(arch) for launch in launches.taken()]


@every_arch
@every_dtype
@every_layout
def test_accesses(width: int, channels_last: bool, dtype: torch.dtype, arch: int) -> None:
    forward, backward = compiled(width, channels_last, dtype, arch)
    # 16 bytes where every row of the map begins at a multiple of them, else 8.
    is_wide = channels_last or width * dtype.itemsize % 16 == 0
    assert set(forward.global_loads) == {128 if is_wide else 64}
    assert max(backward.global_stores) == (128 if is_wide else 64)
    assert forward.shared <= MAX_SHARED_BYTES
    assert backward.shared <= MAX_SHARED_BYTES


@every_arch
@every_dtype
@every_layout
def test_spills(width: int, channels_last: bool, dtype: torch.dtype, arch: int) -> None:
    forward, backward = compiled(width, channels_last, dtype, arch)
    if forward.stack:
        in_loops = " ".join(line for loop in forward.loops for line in loop)
        assert "STL" not in in_loops and "LDL" not in in_loops, forward.name
    for code in (forward, backward):
        assert code.stack <= MAX_STACK_BYTES, f"{code.name} spills"
        assert not code.spills_in_loops, code.name


def test_compiles_where_every_size_is_one(launches: Any) -> None:
    """Triton compiles such sizes as constants, in whose arithmetic other rules hold."""
    pooled = pyramid_pool.pyramid_pool_forward(torch.empty(1, 1, 1, 1, device="meta"), (1,))
    pyramid_pool.pyramid_pool_backward(pooled, (1,), 1, 1, False)
    for launch in launches.taken():
        assert launch.compiled(90).stack == 0

"""The machine code of upsample_add's Triton kernels, as its launchers ask for it: hardly a spill,
16-byte accesses, little shared memory."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from pspfast.kernels.upsample_add import upsample_add_backward, upsample_add_forward

DTYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
# What an sm_89 multiprocessor lends a block, the least of all chips since sm_80.
MAX_SHARED_BYTES = 99 * 1024
# Two registers, saved outside of loops.
MAX_STACK_BYTES = 8
LEVELS = ((64, 64), (32, 32), (16, 16))


def assert_fits(code: Any) -> None:
    assert code.stack <= MAX_STACK_BYTES and not code.spills_in_loops, f"{code.name} spills"
    assert code.shared <= MAX_SHARED_BYTES


def accesses(code: Any, kind: str) -> set[str]:
    """Instructions on global memory: loads (ld), copies to shared memory (cp), or stores (st)."""
    return set(re.findall(rf"{kind}\.(?:async\.\w+\.shared\.)?global[.\w]*", code.ptx))


def a_map(channels_last: bool, dtype: torch.dtype) -> Tensor:
    x = torch.empty(2, 512, 128, 128, dtype=dtype, device="meta")
    return x.to(memory_format=torch.channels_last) if channels_last else x


@pytest.mark.parametrize("arch", [80, 90, 100])
@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPES.values())
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_both_directions(launches: Any, channels_last: bool, dtype: torch.dtype, arch: int) -> None:
    base = a_map(channels_last, dtype)
    mixed = [torch.empty(2, *level, 3, 3, 512, dtype=dtype, device="meta") for level in LEVELS]
    bias = torch.empty(512, dtype=dtype, device="meta")
    upsample_add_forward(mixed[0], base, mixed, bias, (128, 128), False, False, True, channels_last)
    (launch,) = launches.taken()
    code = launch.compiled(arch)
    assert_fits(code)
    assert accesses(code, "st") == {"st.global.v4.b32"}
    assert "ld.global.v4.b32" in accesses(code, "ld")

    sizes = [s for level in LEVELS for s in level]
    upsample_add_backward(base, sizes, 3, False, False, dtype)
    for launch in launches.taken():
        code = launch.compiled(arch)
        assert_fits(code)
        # All reads are copies of 16 bytes to shared memory.
        assert not accesses(code, "ld")
        assert accesses(code, "cp") == {"cp.async.cg.shared.global"}


@pytest.mark.parametrize("nearest", [False, True])
def test_compiles_where_every_size_is_one(launches: Any, nearest: bool) -> None:
    """Triton compiles such sizes as constants, in whose arithmetic other rules hold."""
    one = torch.empty(1, 1, 1, 1, 1, 1, device="meta")
    upsample_add_forward(one, None, [one], None, (1, 1), False, nearest, False, False)
    assert_fits(launches.taken()[0].compiled(90))
    upsample_add_backward(one[0, 0], [1, 1], 1, False, nearest, torch.float32)
    assert_fits(launches.taken()[0].compiled(90))

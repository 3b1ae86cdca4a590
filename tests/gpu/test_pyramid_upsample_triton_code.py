"""The machine code of pyramid_upsample's Triton kernels, as its launchers ask for it: no spills,
16-byte accesses, little shared memory."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from pspfast.kernels import pyramid_upsample

PYRAMID = (1, 2, 3, 6)
BIN_COUNT = sum(b * b for b in PYRAMID)
DTYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
# What an sm_89 multiprocessor lends a block, the least of all chips since sm_80.
MAX_SHARED_BYTES = 99 * 1024


def a_map(channels: int, width: int, dtype: torch.dtype, channels_last: bool) -> Tensor:
    x = torch.empty(2, channels, 60, width, dtype=dtype, device="meta")
    return x.to(memory_format=torch.channels_last) if channels_last else x


def the_code(launches: Any, arch: int) -> Any:
    """Of the one kernel that was launched."""
    (launch,) = launches.taken()
    return launch.compiled(arch)


def assert_fits(code: Any) -> None:
    assert code.stack == 0, f"{code.name} spills"
    assert code.shared <= MAX_SHARED_BYTES


def accesses(code: Any, kind: str) -> set[str]:
    """Instructions on global memory: loads (ld), copies to shared memory (cp), or stores (st)."""
    return set(re.findall(rf"{kind}\.(?:async\.\w+\.shared\.)?global[.\w]*", code.ptx))


def vector(width: int, dtype: torch.dtype, channels_last: bool) -> str:
    """16 bytes where every row of the map begins at a multiple of them, else 8."""
    return "v4.b32" if channels_last or width * dtype.itemsize % 16 == 0 else "v2.b32"


every_arch = pytest.mark.parametrize("arch", [80, 90, 100])
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=DTYPES.values())
# Channels are innermost in channels_last, whatever the width.
every_layout = pytest.mark.parametrize(
    ("width", "channels_last"),
    [(64, False), (60, False), (60, True)],
    ids=["contiguous-64", "contiguous-60", "channels_last"],
)


@every_arch
@every_dtype
@every_layout
def test_add(launches: Any, width: int, channels_last: bool, dtype: torch.dtype, arch: int) -> None:
    base = a_map(512, width, dtype, channels_last)
    mixed = torch.empty(2, BIN_COUNT, 3, 3, 512, device="meta")
    bias = torch.empty(512, dtype=dtype, device="meta")
    pyramid_upsample.pyramid_upsample_add_forward(base, mixed, bias, PYRAMID, True, True)
    forward = the_code(launches, arch)
    assert_fits(forward)
    of_map = vector(width, dtype, channels_last)
    assert accesses(forward, "st") == {f"st.global.{of_map}"}
    # Of mixed, of base, and of bias if columns are innermost.
    loads = accesses(forward, "ld")
    assert {"ld.global.v4.b32", f"ld.global.{of_map}"} <= loads
    assert not channels_last or loads == {"ld.global.v4.b32"}

    pyramid_upsample.pyramid_upsample_add_backward(base, PYRAMID, True, 3)
    backward = the_code(launches, arch)
    assert_fits(backward)
    assert_copies_map(backward, of_map)
    assert accesses(backward, "st") == {"st.global.v4.b32"}


@every_arch
@every_dtype
@every_layout
def test_concat(
    launches: Any, width: int, channels_last: bool, dtype: torch.dtype, arch: int
) -> None:
    x = a_map(2048, width, dtype, channels_last)
    priors = torch.empty(2, 512, BIN_COUNT, dtype=dtype, device="meta")
    if channels_last:
        priors = priors.transpose(1, 2).contiguous().transpose(1, 2)
    grad = pyramid_upsample.pyramid_concat_forward(x, priors, PYRAMID, True)
    forward = the_code(launches, arch)
    assert_fits(forward)
    of_map = vector(width, dtype, channels_last)
    assert accesses(forward, "st") == {f"st.global.{of_map}"}
    # Of x, and of priors, whose bins are innermost in contiguous ones.
    loads = accesses(forward, "ld")
    assert f"ld.global.{of_map}" in loads
    assert not channels_last or loads == {"ld.global.v4.b32"}

    pyramid_upsample.pyramid_concat_backward(grad, PYRAMID, True, 512)
    backward = the_code(launches, arch)
    assert_fits(backward)
    assert_copies_map(backward, of_map)
    # The sums of segments are float32.
    assert accesses(backward, "st") == {"st.global.v4.b32"}


def assert_copies_map(code: Any, of_map: str) -> None:
    """All reads are copies to shared memory; cg are those of 16 bytes."""
    assert not accesses(code, "ld")
    level = "cg" if of_map == "v4.b32" else "ca"
    assert accesses(code, "cp") == {f"cp.async.{level}.shared.global"}


def test_compiles_where_every_size_is_one(launches: Any) -> None:
    """Triton compiles such sizes as constants, in whose arithmetic other rules hold."""
    one = torch.empty(1, 1, 1, 1, device="meta")
    pyramid_upsample.pyramid_upsample_add_forward(
        one, torch.empty(1, 1, 1, 1, 1, device="meta"), None, (1,), False, False
    )
    assert_fits(the_code(launches, 90))
    pyramid_upsample.pyramid_upsample_add_backward(one, (1,), False, 1)
    assert_fits(the_code(launches, 90))
    grad = pyramid_upsample.pyramid_concat_forward(one, one.flatten(2), (1,), False)
    assert_fits(the_code(launches, 90))
    pyramid_upsample.pyramid_concat_backward(grad, (1,), False, 1)
    assert_fits(the_code(launches, 90))

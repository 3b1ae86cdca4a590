"""The machine code of dilated_conv2d's Triton kernels, as their launchers ask for it and for every
tile that tuning may choose: tensor cores, 16-byte accesses, no spills in loops."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from pspfast.kernels import dilated_conv2d as launchers

DTYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
KIND = {torch.float32: "tf32", torch.float16: "f16", torch.bfloat16: "bf16"}
# What a multiprocessor lends a block.
MAX_SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
# The same of sm_89, the least of all chips since sm_80: for all tiles but the largest.
LEAST_SHARED_BYTES = 99 * 1024
# To keep one more program resident ptxas saves a few registers outside of loops: on sm_100, and
# with Triton 3.6 everywhere.
MAX_STACK_BYTES = {80: 8, 90: 8, 100: 24}
# Tiles of 128 by 256 leave few registers beside their sums: what the addresses of residual and
# result have in common is saved before the loop and read behind it.
MAX_STACK_BYTES_OF_RESIDUAL = 160
# Of the weight's gradient in such tiles on sm_80, and instructions of its loop that spill, two in
# hundreds: with Triton 3.6.
MAX_STACK_BYTES_OF_GRAD_WEIGHT, MAX_SPILLS_IN_ITS_LOOP = 48, 2

SIZE = (16, 60, 60)


def compiled(launches: Any, arch: int, tiles: int | None = None) -> Iterator[tuple[int, Any]]:
    """Columns of a tile, and the code, of the one kernel that was launched, in its first so many
    tiles."""
    taken = launches.taken()
    assert len({launch.kernel for launch in taken}) == 1
    for launch in taken[:tiles]:
        yield launch.args["BLOCK_N"], launch.compiled(arch)


def a_map(channels: int, dtype: torch.dtype, size: tuple[int, int, int] = SIZE) -> Tensor:
    batch, height, width = size
    x = torch.empty(batch, channels, height, width, dtype=dtype, device="meta")
    return x.to(memory_format=torch.channels_last)


def a_weight(out_channels: int, channels: int, dtype: torch.dtype) -> Tensor:
    return a_map(channels, dtype, (out_channels, 3, 3))


def products(code: Any) -> set[str]:
    """Instructions of tensor cores."""
    return set(re.findall(r"(?:wgmma\.mma_async|mma\.sync|tcgen05\.mma)[\w.:]*", code.ptx))


def accesses(code: Any, kind: str) -> set[str]:
    """Instructions on global memory: loads (ld), copies to shared memory (cp), or stores (st)."""
    return set(re.findall(rf"\b{kind}\.(?:async\.\w+\.shared\.)?global[.\w]*", code.ptx))


def assert_fits(
    code: Any, arch: int, stack_bytes: int | None = None, spills_in_loop: int = 0
) -> None:
    most = MAX_STACK_BYTES[arch] if stack_bytes is None else stack_bytes
    assert code.stack <= most, f"{code.name} spills"
    assert len(code.spills_in_loops) <= spills_in_loop, f"{code.name} spills in its loop"
    assert code.shared <= MAX_SHARED_BYTES[arch], code.name


def assert_on_tensor_cores(code: Any, arch: int, dtype: torch.dtype) -> None:
    start = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}[arch]
    # tcgen05 has one kind for both types of 16 bits.
    kind = "kind::f16" if arch == 100 and dtype.itemsize == 2 else KIND[dtype]
    assert products(code)
    assert all(p.startswith(start) and kind in p for p in products(code)), products(code)


def assert_copies_operands(code: Any) -> None:
    """Asynchronously, 16 bytes at a time, and stores as much at a time."""
    assert accesses(code, "cp") == {"cp.async.cg.shared.global"}
    assert accesses(code, "st") == {"st.global.v4.b32"}


every_arch = pytest.mark.parametrize("arch", [80, 90, 100])
# float16 and bfloat16 differ in the names of a few instructions.
every_dtype = pytest.mark.parametrize(
    ("dtype", "tiles"),
    [(torch.float32, None), (torch.float16, None), (torch.bfloat16, 1)],
    ids=DTYPES.values(),
)


@every_arch
@every_dtype
def test_forward(launches: Any, dtype: torch.dtype, tiles: int | None, arch: int) -> None:
    x, weight = a_map(512, dtype), a_weight(512, 512, dtype)
    bias = torch.empty(512, dtype=dtype, device="meta")
    launchers.dilated_conv2d(x, weight, bias, 4, x, True)
    for columns, code in compiled(launches, arch, tiles):
        wide = columns == 256
        assert_fits(code, arch, MAX_STACK_BYTES_OF_RESIDUAL if wide else None)
        assert_on_tensor_cores(code, arch, dtype)
        assert_copies_operands(code)
        assert "ld.global.v4.b32" in accesses(code, "ld")
        assert wide or code.shared <= LEAST_SHARED_BYTES


@every_arch
@every_dtype
def test_grad_input(launches: Any, dtype: torch.dtype, tiles: int | None, arch: int) -> None:
    grad, weight = a_map(512, dtype), a_weight(512, 256, dtype)
    launchers.dilated_conv2d_grad_input(grad, weight, 4)
    # That of float32 is a forward launch.
    for _, code in compiled(launches, arch, 1 if dtype == torch.float32 else tiles):
        assert_fits(code, arch)
        assert_on_tensor_cores(code, arch, dtype)
        assert_copies_operands(code)
        assert not accesses(code, "ld")


@every_arch
@every_dtype
def test_grad_weight(launches: Any, dtype: torch.dtype, tiles: int | None, arch: int) -> None:
    launchers.dilated_conv2d_grad_weight(a_map(512, dtype), a_map(256, dtype), 4)
    for columns, code in compiled(launches, arch, tiles):
        if arch == 80 and columns == 256:
            assert_fits(code, arch, MAX_STACK_BYTES_OF_GRAD_WEIGHT, MAX_SPILLS_IN_ITS_LOOP)
        else:
            assert_fits(code, arch)
        assert_on_tensor_cores(code, 80 if dtype == torch.float32 else arch, dtype)
        assert_copies_operands(code)
        assert not accesses(code, "ld")
        assert columns == 256 or code.shared <= LEAST_SHARED_BYTES


@every_arch
def test_exact_products_of_float32(launches: Any, arch: int) -> None:
    x, weight = a_map(512, torch.float32), a_weight(512, 512, torch.float32)
    with torch.backends.cudnn.flags(allow_tf32=False):
        launchers.dilated_conv2d(x, weight, None, 4, x, True)
        ((_, forward),) = compiled(launches, arch)
        launchers.dilated_conv2d_grad_input(x, weight, 4)
        ((_, grad_input),) = compiled(launches, arch)
        launchers.dilated_conv2d_grad_weight(x, x, 4)
        ((_, grad_weight),) = compiled(launches, arch)
    for code in (forward, grad_input, grad_weight):
        assert_fits(code, arch)
        assert_copies_operands(code)
        assert not products(code)


def test_few_channels_keep_wide_accesses(launches: Any) -> None:
    """Eight channels of 16 bits are 16 bytes, and Triton itself looks for multiples of 16."""
    x, grad = a_map(24, torch.float16), a_map(40, torch.float16)
    weight = a_weight(40, 24, torch.float16)
    launchers.dilated_conv2d(x, weight, None, 1, None, False)
    for _, code in compiled(launches, 90, 1):
        assert_copies_operands(code)
    launchers.dilated_conv2d_grad_input(grad, weight, 1)
    for _, code in compiled(launches, 90, 1):
        assert_copies_operands(code)
    launchers.dilated_conv2d_grad_weight(grad, x, 1)
    for _, code in compiled(launches, 90, 1):
        assert_copies_operands(code)


@pytest.mark.parametrize(
    ("size", "channels", "dilation"),
    [((1, 1, 1), 1, 1), ((2**20, 60, 60), 64, 4)],
    ids=["one", "int64"],
)
def test_compiles_for_sizes_of_other_types(
    launches: Any, size: tuple[int, int, int], channels: int, dilation: int
) -> None:
    """Triton compiles a size of one as a constant, in whose arithmetic other rules hold, and has
    numbers from 2**31 on in 64 bits."""
    x, weight = a_map(channels, torch.float16, size), a_weight(channels, channels, torch.float16)
    bias = torch.empty(channels, dtype=torch.float16, device="meta")
    launchers.dilated_conv2d(x, weight, bias, dilation, x, True)
    for _, code in compiled(launches, 90, 1):
        assert_fits(code, 90, MAX_STACK_BYTES_OF_RESIDUAL)
    launchers.dilated_conv2d_grad_input(x, weight, dilation)
    for _, code in compiled(launches, 90, 1):
        assert_fits(code, 90)
    launchers.dilated_conv2d_grad_weight(x, x, dilation)
    for _, code in compiled(launches, 90, 1):
        assert_fits(code, 90)


@pytest.mark.parametrize("arch", [90, 100])
@pytest.mark.parametrize(
    ("part", "dtype", "tiles"),
    [
        ("forward", torch.float16, None),
        ("forward", torch.float32, 1),
        ("forward", torch.bfloat16, 1),
        ("grad_input", torch.float16, 1),
    ],
)
def test_boxes(
    launches: Any,
    monkeypatch: pytest.MonkeyPatch,
    part: str,
    dtype: torch.dtype,
    tiles: int | None,
    arch: int,
) -> None:
    """The chip's unit alone copies, both ways. With residuals too nothing spills."""
    monkeypatch.setattr(launchers, "has_tensor_descriptors", lambda x: True)
    x, weight = a_map(512, dtype), a_weight(512, 512, dtype)
    if part == "forward":
        bias = torch.empty(512, dtype=dtype, device="meta")
        launchers.dilated_conv2d(x, weight, bias, 4, x, True)
    else:
        launchers.dilated_conv2d_grad_input(x, weight, 4)
    for columns, code in compiled(launches, arch, tiles):
        assert_fits(code, arch)
        assert_on_tensor_cores(code, arch, dtype)
        assert accesses(code, "cp") == accesses(code, "st") == set()
        # Of both operands, and the residual.
        assert code.sass.count("UTMALDG") >= 2 + (part == "forward")
        assert "UTMASTG" in code.sass
        assert columns == 256 or code.shared <= LEAST_SHARED_BYTES

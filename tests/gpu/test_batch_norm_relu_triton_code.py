"""The machine code of batch_norm_relu's Triton kernels, as their launchers ask for it: no spills,
16-byte accesses, little shared memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pspfast.kernels import batch_norm_relu, batch_norm_statistics

DTYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
# What an sm_89 multiprocessor lends a block, the least of all chips since sm_80.
MAX_SHARED_BYTES = 99 * 1024
# Four programs of 128 threads share the 65536 of a multiprocessor; those that add what others sum
# are few.
MAX_REGISTERS = 128
ADDING = {"merge_moments_kernel", "merge_statistics_kernel", "add_sums_kernel"}


def launched(
    launches: Any,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    has_residual: bool,
    relu: bool = True,
    weight_dtype: torch.dtype = torch.float32,
) -> list[Any]:
    """The seven kernels of forward and backward, on one process and on eight."""
    x = torch.empty(shape, dtype=dtype, device="meta").to(memory_format=torch.channels_last)
    weight = torch.empty(shape[1], dtype=weight_dtype, device="meta")
    residual = x if has_residual else None
    running = (weight, weight, torch.empty((), dtype=torch.int64, device="meta"), 0.1)
    statistics = batch_norm_statistics.batch_norm_statistics(x, *running)
    batch_norm_statistics.batch_norm_merge_statistics(statistics.repeat(8, 1), *running)
    arguments = (x, statistics, weight, weight, residual, relu, 1e-5)
    out = batch_norm_relu.batch_norm_relu(*arguments)
    batch_norm_relu.batch_norm_relu_backward(out, *arguments)
    taken = launches.taken()
    assert len(taken) == 7
    return taken


def assert_fits(code: Any) -> None:
    assert code.stack == 0, f"{code.name} spills"
    assert code.shared <= MAX_SHARED_BYTES, code.name
    assert code.registers <= MAX_REGISTERS or code.name in ADDING, code.name


def assert_wide(launch: Any, code: Any, has_residual: bool) -> None:
    """Maps are read and written 16 bytes at a time, as often as a tile needs and no more."""
    reads, writes = {
        "moments_kernel": (1, 0),
        "apply_kernel": (1 + has_residual, 1),
        "grad_sums_kernel": (2 + has_residual, has_residual),
        "grad_input_kernel": (2, 1),
    }[code.name]
    args = launch.args
    tile_bytes = args["BLOCK_P"] * args["BLOCK_C"] * args["p_x"].element_size()
    accesses = tile_bytes // (16 * code.threads)
    assert accesses >= 1
    # Those of channels can be as wide.
    assert code.global_loads.count(128) >= reads * accesses, code.name
    assert code.global_stores.count(128) == writes * accesses, code.name
    if code.name in ("apply_kernel", "grad_input_kernel"):
        assert set(code.global_stores) == {128}, code.name


both_forms = pytest.mark.parametrize("has_residual", [True, False], ids=["residual", "alone"])


@pytest.mark.parametrize("arch", [80, 90, 100])
@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPES.values())
@both_forms
def test_of_a_large_map(launches: Any, has_residual: bool, dtype: torch.dtype, arch: int) -> None:
    for launch in launched(launches, (16, 64, 237, 237), dtype, has_residual):
        code = launch.compiled(arch)
        assert_fits(code)
        if code.name not in ADDING:
            assert_wide(launch, code, has_residual)


@both_forms
def test_of_a_small_map(launches: Any, has_residual: bool) -> None:
    """Its tiles are the smallest, and eight channels of 16 bits are 16 bytes, where Triton itself
    looks for multiples of 16."""
    for launch in launched(launches, (2, 40, 30, 30), torch.float16, has_residual):
        code = launch.compiled(90)
        assert_fits(code)
        if code.name not in ADDING:
            assert_wide(launch, code, has_residual)


@pytest.mark.parametrize(
    ("shape", "weight_dtype"),
    [((1, 1, 1, 1), torch.float64), ((2, 3, 5, 7), torch.float16), ((2**20, 64, 60, 60), None)],
    ids=["one", "odd", "int64"],
)
@pytest.mark.parametrize("relu", [True, False], ids=["relu", "linear"])
def test_compiles_for_sizes_and_weights_of_other_types(
    launches: Any, relu: bool, shape: tuple[int, ...], weight_dtype: torch.dtype | None
) -> None:
    """Triton compiles a size of one as a constant, in whose arithmetic other rules hold, and has
    numbers from 2**31 on in 64 bits."""
    weight_dtype = weight_dtype or torch.float32
    for launch in launched(launches, shape, torch.bfloat16, True, relu, weight_dtype):
        assert_fits(launch.compiled(90))

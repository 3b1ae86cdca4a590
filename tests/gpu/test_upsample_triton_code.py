"""The machine code of the Triton kernels of upsample_cross_entropy, upsample_argmax and
upsample_softmax, as their launchers ask for it: no spills, little shared memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from triton import cdiv

from pspfast.kernels import upsample_argmax, upsample_cross_entropy, upsample_softmax

DTYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
# What an sm_89 multiprocessor lends a block, the least of all chips since sm_80.
MAX_SHARED_BYTES = 99 * 1024
# To keep one more program resident, ptxas saves up to four registers, outside of inner loops, on
# sm_100 in softmax and, with Triton 3.6, in the loss's backward, and with weights and smoothing
# everywhere; what such loops need would take hundreds of bytes.
MAX_STACK_BYTES = 16


def assert_fit(
    launches: Any, arch: int, kernels: int, stack_bytes: int = 0, long_axes: bool = False
) -> None:
    """All kernels that were launched, and so many were."""
    taken = launches.taken()
    assert len(taken) == kernels
    for launch in taken:
        assert launch.args.get("LONG_AXES", long_axes) == long_axes
        code = launch.compiled(arch)
        assert code.stack <= stack_bytes, f"{code.name} spills"
        assert code.shared <= MAX_SHARED_BYTES, code.name
        assert not code.spills_in_loops, code.name


def some_logits(classes: int, channels_last: bool, dtype: torch.dtype) -> Tensor:
    x = torch.empty(2, classes, 60, 60, dtype=dtype, device="meta")
    return x.to(memory_format=torch.channels_last) if channels_last else x


every_arch = pytest.mark.parametrize("arch", [80, 90, 100])
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=DTYPES.values())
# In contiguous logits, the number of classes changes nothing.
every_layout = pytest.mark.parametrize(
    ("classes", "channels_last"),
    [(150, False), (150, True), (19, True)],
    ids=["contiguous", "channels_last-150", "channels_last-19"],
)
SIZE = 473


def launch_loss(
    logits: Tensor,
    size: tuple[int, int],
    *,
    weighted: bool = False,
    label_smoothing: float = 0.0,
    with_labels: bool = True,
    align_corners: bool = True,
) -> None:
    target = torch.empty(logits.shape[0], *size, dtype=torch.long, device="meta")
    weight = torch.empty(logits.shape[1], device="meta") if weighted else None
    arguments = (255, align_corners, label_smoothing)
    loss, lse, _, _ = upsample_cross_entropy.upsample_cross_entropy_forward(
        logits, target, weight, *arguments, torch.uint8, with_labels
    )
    upsample_cross_entropy.upsample_cross_entropy_backward(
        loss, logits, target, weight, lse, *arguments
    )


def launch_argmax_and_softmax(
    logits: Tensor, size: tuple[int, int], align_corners: bool = True
) -> None:
    upsample_argmax.upsample_argmax(logits, *size, align_corners, torch.uint8)
    upsample_softmax.upsample_softmax(logits, *size, align_corners, False, 0.5)
    height, width = size
    window = torch.empty(*logits.shape[:2], height + 1, width + 1, device="meta")[..., 1:, 1:]
    upsample_softmax.upsample_softmax_add(window, logits, align_corners, True, 0.5)


@every_arch
@every_dtype
@every_layout
def test_loss(
    launches: Any, classes: int, channels_last: bool, dtype: torch.dtype, arch: int
) -> None:
    launch_loss(some_logits(classes, channels_last, dtype), (SIZE, SIZE))
    assert_fit(launches, arch, 3, MAX_STACK_BYTES if arch == 100 else 0)


@every_arch
@pytest.mark.parametrize(("classes", "times"), [(19, 1), (32, 1), (150, 5)])
def test_targets_are_loaded_once_for_32_classes(
    launches: Any, classes: int, times: int, arch: int
) -> None:
    launch_loss(some_logits(classes, True, torch.bfloat16), (SIZE, SIZE))
    *_, backward = launches.taken()
    rows, columns = backward.args["TILE_ROWS"], backward.args["TILE_COLS"]
    assert backward.programs == times * 2 * cdiv(60, rows) * cdiv(60, columns)
    loops = [" ".join(loop) for loop in backward.compiled(arch).innermost_loops]
    # Of a row of the image: targets, and lse.
    assert [loop.count("LDG") for loop in loops if "MUFU.EX2" in loop] == [2]


def test_one_image_fills_a_large_gpu(launches: Any) -> None:
    columns = set()
    for batch in (1, 2):
        launch_loss(some_logits(19, True, torch.bfloat16)[:batch], (SIZE, SIZE))
        *_, backward = launches.taken()
        assert backward.programs >= 2 * 132  # of an H100's multiprocessors
        columns.add(backward.args["TILE_COLS"])
    # The order of sums over columns is an image's, whatever the batch.
    assert len(columns) == 1


@every_arch
@every_layout
def test_loss_with_weights_and_smoothing(
    launches: Any, classes: int, channels_last: bool, arch: int
) -> None:
    logits = some_logits(classes, channels_last, torch.float32)
    launch_loss(logits, (SIZE, SIZE), weighted=True, label_smoothing=0.1, align_corners=False)
    assert_fit(launches, arch, 3, MAX_STACK_BYTES)


@every_arch
@every_dtype
@every_layout
def test_argmax_and_softmax(
    launches: Any, classes: int, channels_last: bool, dtype: torch.dtype, arch: int
) -> None:
    launch_argmax_and_softmax(some_logits(classes, channels_last, dtype), (SIZE, SIZE))
    assert_fit(launches, arch, 3, MAX_STACK_BYTES if arch == 100 else 0)


@pytest.mark.parametrize("weighted", [False, True])
def test_compiles_where_every_size_is_one(launches: Any, weighted: bool) -> None:
    """Triton compiles such sizes as constants, in whose arithmetic other rules hold."""
    logits = torch.empty(1, 1, 1, 1, device="meta")
    launch_loss(logits, (1, 1), weighted=weighted, label_smoothing=0.1, align_corners=weighted)
    launch_argmax_and_softmax(logits, (1, 1), align_corners=weighted)
    assert_fit(launches, 90, 6, MAX_STACK_BYTES)


def test_compiles_for_long_axes(launches: Any) -> None:
    logits = torch.empty(1, 19, 1, 2**16, device="meta")
    launch_loss(logits, (1, 2**13), with_labels=False)
    launch_argmax_and_softmax(logits, (1, 2**13))
    assert_fit(launches, 90, 6, MAX_STACK_BYTES, long_axes=True)

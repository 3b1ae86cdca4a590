"""The machine code of upsample_loss's and upsample_argmax's Triton kernels, as their launchers ask
for it: no spills, little shared memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from triton import JITFunction

from pspfast.kernels import upsample_argmax, upsample_loss

DTYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
OTHER_DTYPES = {torch.float64: "fp64", torch.int64: "i64", torch.uint8: "u8"}
# What an sm_89 multiprocessor lends a block, the least of all chips since sm_80.
MAX_SHARED_BYTES = 99 * 1024
# In softmax on sm_100, and with weights and smoothing, ptxas saves up to four registers, outside of
# inner loops, to keep one more program resident; what such loops need would take hundreds of bytes.
MAX_STACK_BYTES = 16


class Launches:
    """In place of wrap_triton: notes kernels and arguments, and compiles instead of launching."""

    def __init__(self, triton_code: Callable[..., Any]) -> None:
        self.triton_code = triton_code
        self.noted: list[tuple[JITFunction, dict[str, Any]]] = []

    def __call__(self, kernel: JITFunction) -> dict[tuple[int], Callable[..., None]]:
        def launch(*args: Any, **constants: Any) -> None:
            names = kernel.arg_names[: len(args)]
            self.noted.append((kernel, dict(zip(names, args, strict=True)) | constants))

        class OfAnyGrid(dict):
            def __missing__(self, grid: tuple[int]) -> Callable[..., None]:
                return launch

        return OfAnyGrid()

    def assert_fit(self, arch: int, kernels: int, stack_bytes: int = 0) -> None:
        """Of all kernels that were launched, and so many were."""
        assert len(self.noted) == kernels
        for kernel, args in self.noted:
            all_dtypes = DTYPES | OTHER_DTYPES
            dtypes = {n: all_dtypes[arg.dtype] for n, arg in args.items() if n[:2] == "p_"}
            numbers = {n: arg for n, arg in args.items() if not isinstance(arg, Tensor)}
            # Triton compiles a 1 as a constant.
            constants = {
                n: arg
                for n, arg in numbers.items()
                if n.isupper() or (isinstance(arg, int) and arg == 1)
            }
            numbers = {n: arg for n, arg in numbers.items() if n not in constants}
            dtypes |= {n: "fp32" for n, arg in numbers.items() if isinstance(arg, float)}
            divisible = tuple(n for n, arg in numbers.items() if n not in dtypes and arg % 16 == 0)
            code = self.triton_code(kernel, arch, dtypes, constants, divisible)
            assert code.stack <= stack_bytes, f"{code.name} spills"
            assert code.shared <= MAX_SHARED_BYTES, code.name


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch, triton_code: Callable[..., Any]) -> Launches:
    launches = Launches(triton_code)
    for module in (upsample_loss, upsample_argmax):
        monkeypatch.setattr(module, "wrap_triton", launches)
    return launches


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
    loss, lse, _, _ = upsample_loss.upsample_loss_forward(
        logits, target, weight, *arguments, torch.uint8, with_labels
    )
    upsample_loss.upsample_loss_backward(loss, logits, target, weight, lse, *arguments)


def launch_argmax_and_softmax(
    logits: Tensor, size: tuple[int, int], align_corners: bool = True
) -> None:
    upsample_argmax.upsample_argmax(logits, *size, align_corners, torch.uint8)
    upsample_argmax.upsample_softmax(logits, *size, align_corners, False, 0.5)
    height, width = size
    window = torch.empty(*logits.shape[:2], height + 1, width + 1, device="meta")[..., 1:, 1:]
    upsample_argmax.upsample_softmax_add(window, logits, align_corners, True, 0.5)


@every_arch
@every_dtype
@every_layout
def test_loss(
    launches: Launches, classes: int, channels_last: bool, dtype: torch.dtype, arch: int
) -> None:
    launch_loss(some_logits(classes, channels_last, dtype), (SIZE, SIZE))
    launches.assert_fit(arch, 2)


@every_arch
@every_layout
def test_loss_with_weights_and_smoothing(
    launches: Launches, classes: int, channels_last: bool, arch: int
) -> None:
    logits = some_logits(classes, channels_last, torch.float32)
    launch_loss(logits, (SIZE, SIZE), weighted=True, label_smoothing=0.1, align_corners=False)
    launches.assert_fit(arch, 2, MAX_STACK_BYTES)


@every_arch
@every_dtype
@every_layout
def test_argmax_and_softmax(
    launches: Launches, classes: int, channels_last: bool, dtype: torch.dtype, arch: int
) -> None:
    launch_argmax_and_softmax(some_logits(classes, channels_last, dtype), (SIZE, SIZE))
    launches.assert_fit(arch, 3, MAX_STACK_BYTES if arch == 100 else 0)


@pytest.mark.parametrize("weighted", [False, True])
def test_compiles_where_every_size_is_one(launches: Launches, weighted: bool) -> None:
    """Triton compiles such sizes as constants, in whose arithmetic other rules hold."""
    logits = torch.empty(1, 1, 1, 1, device="meta")
    launch_loss(logits, (1, 1), weighted=weighted, label_smoothing=0.1, align_corners=weighted)
    launch_argmax_and_softmax(logits, (1, 1), align_corners=weighted)
    launches.assert_fit(90, 5, MAX_STACK_BYTES)


def test_compiles_for_long_axes(launches: Launches) -> None:
    logits = torch.empty(1, 19, 1, 2**16, device="meta")
    launch_loss(logits, (1, 2**13), with_labels=False)
    launch_argmax_and_softmax(logits, (1, 2**13))
    assert all(args["LONG_AXES"] for _, args in launches.noted)
    launches.assert_fit(90, 5, MAX_STACK_BYTES)

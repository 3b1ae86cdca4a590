"""What launchers share: devices, memory formats of maps, and sizes that hold for every kernel."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import triton
from torch import Tensor

T = TypeVar("T")

# Two programs for each of the 132 multiprocessors of an H100: a launch of fewer leaves some idle.
ENOUGH_PROGRAMS = 2 * 132


def launches_on_tensor_device(launcher: Callable[..., T]) -> Callable[..., T]:
    """Decorates a launcher: makes the device of its first argument, a tensor, the current one. That
    is where Triton launches."""

    @functools.wraps(launcher)
    def launch(first: Tensor, *args: Any, **kwargs: Any) -> T:
        if not torch.cuda.is_available():  # The launch is traced or interpreted.
            return launcher(first, *args, **kwargs)
        with torch.cuda.device_of(first):
            return launcher(first, *args, **kwargs)

    return launch


def wrap_triton(kernel: Any) -> Any:
    """``torch.library.wrap_triton``, which refuses kernels that Triton interprets until torch
    2.11."""
    return kernel if triton.knobs.runtime.interpret else torch.library.wrap_triton(kernel)


def shared_bytes_of_a_block() -> int | None:
    """Shared memory that the current GPU lends a program at most; None without a GPU."""
    if not torch.cuda.is_available():
        return None
    driver = triton.runtime.driver.active
    properties = driver.utils.get_device_properties(driver.get_current_device())
    return properties["max_shared_mem"]


def has_tensor_descriptors(x: Tensor) -> bool:
    """Whether the GPU that x is on copies boxes of tensors by itself, as NVIDIA's do since compute
    capability 9. A tensor that is traced has no address that a descriptor could hold."""
    is_traced = type(x) not in (Tensor, torch.nn.Parameter)
    if is_traced or torch.version.hip is not None or not torch.cuda.is_available():
        return False
    return torch.cuda.get_device_capability(x.device)[0] >= 9


def dense(x: Tensor) -> tuple[Tensor, bool]:
    """x ``[N, C, H, W]`` in a format that kernels read, and whether the format is channels_last: x
    itself if it is contiguous or channels_last, else a contiguous copy."""
    if not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
        return x, True
    return x.contiguous(), False


def empty_map(
    like: Tensor,
    shape: tuple[int, int, int, int],
    channels_last: bool,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """A map of this shape ``[N, C, H, W]``, of the dtype, unless another is given, and on the
    device of ``like``."""
    batch, channels, height, width = shape
    dtype = dtype or like.dtype
    if channels_last:
        return like.new_empty((batch, height, width, channels), dtype=dtype).permute(0, 3, 1, 2)
    return like.new_empty(shape, dtype=dtype)


def column_block(width: int) -> int:
    """Columns of a program, at most 64: of 32 channels, these take 16 registers of each of 128
    threads."""
    return 16 if width <= 16 else 32 if width <= 32 else 64


def width_divisor(width: int) -> int:
    """The largest power of two up to 16 that divides ``width``, and so the offset of every row of a
    contiguous map. Accesses of 16 bytes need 8 for elements of 16 bits, 4 for float32."""
    return next(d for d in (16, 8, 4, 2, 1) if width % d == 0)


def next_power_of_2(least: int) -> int:
    """The smallest power of two that is not below ``least``.

    It compares where ``triton.next_power_of_2`` shifts bits: torch.compile traces comparisons of
    sizes that vary.
    """
    power = 1
    while power < least:
        power *= 2
    return power

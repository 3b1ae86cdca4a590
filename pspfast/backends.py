"""Which implementation of the ops serves a tensor.

``cpu`` and ``cuda`` are the C++ and CUDA kernels of the op library, ``triton`` the kernels of
``pspfast.kernels``, ``reference`` plain PyTorch, for every device. ``auto``, the default, takes the
first of them that serves the tensor's device: ``cuda`` serves GPUs that the library holds code for.
The environment variable ``PSPFAST_BACKEND`` or :func:`backend` chooses another. In transforms of
``torch.func`` and forward-mode differentiation plain PyTorch runs, whatever is chosen.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

from pspfast import _extension

try:
    import triton  # noqa: F401

    _triton_error = None
except ImportError as error:
    _triton_error = f"triton cannot be imported: {error}"

NAMES = ("auto", "cpu", "cuda", "triton", "reference")
# Device types that each backend serves; `reference` serves all of them.
_DEVICES = {"cpu": "cpu", "cuda": "cuda", "triton": "cuda"}
# Of NVIDIA's GPUs that Triton supports, as its README says.
_LEAST_TRITON_CAPABILITY = (8, 0)


def _checked(name: str, source: str) -> str:
    if name not in NAMES:
        raise ValueError(f"{source}: expected one of {', '.join(NAMES)}, got {name!r}")
    return name


_chosen = _checked(os.environ.get("PSPFAST_BACKEND", "auto"), "PSPFAST_BACKEND")


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Inside ``with pspfast.backend(name):`` ops run on this backend, in every thread.

    Args:
        name: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"triton"`` or ``"reference"``.

    Raises:
        ValueError: there is no such backend.

    Examples:
        >>> import pspfast
        >>> x = torch.randn(1, 4, 7, 7)
        >>> with pspfast.backend("reference"):
        ...     expected = pspfast.ops.pyramid_pool(x, (1, 2))
        >>> torch.allclose(pspfast.ops.pyramid_pool(x, (1, 2)), expected, atol=1e-6)
        True
    """
    global _chosen
    previous, _chosen = _chosen, _checked(name, "pspfast.backend")
    try:
        yield
    finally:
        _chosen = previous


def _find_missing() -> dict[str, str]:
    reasons = {}
    if _extension.build_info is None:
        reasons["cpu"] = reasons["cuda"] = str(_extension.load_error)
    elif _extension.build_info["cuda"] is None:
        reasons["cuda"] = (
            "pspfast._C was built without CUDA: install nvcc and a CUDA build of torch, "
            "then reinstall"
        )
    elif torch.version.cuda is None:
        reasons["cuda"] = f"torch {torch.__version__} is no CUDA build"
    if _triton_error:
        reasons["triton"] = _triton_error
    return reasons


#: Backends that this installation lacks, and why.
MISSING = _find_missing()


T = TypeVar("T")

_triton_ops: list[Callable[[], None]] = []
_triton_ops_lock = Lock()


def registers_triton_ops(register: Callable[[], None]) -> Callable[[], None]:
    """Decorates what registers a module's Triton ops: :func:`load_triton_ops` calls it."""
    _triton_ops.append(register)
    return register


def constant_when_compiled(function: Callable[..., T]) -> Callable[..., T]:
    """``torch.compiler.assume_constant_result``, without its import of torch's compiler."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@constant_when_compiled
def load_triton_ops() -> None:
    """Registers all Triton ops, when they are first needed: it imports torch's compiler, which
    takes longer than the rest of pspfast and 150 MB."""
    with _triton_ops_lock:
        while _triton_ops:
            _triton_ops.pop()()


def is_automatic() -> bool:
    """Whether no backend has been chosen."""
    return _chosen == "auto"


def device_capability(index: int) -> tuple[int, int] | None:
    """The compute capability of this GPU; None without it, and for AMD's, which have none."""
    if torch.version.hip is not None or index >= torch.cuda.device_count():
        return None
    return torch.cuda.get_device_capability(index)


def code_for(capability: tuple[int, int], codes: str) -> str | None:
    """The one of ``codes`` that a GPU of this compute capability runs, or None.

    Args:
        capability: major and minor version.
        codes: as nvcc names them, separated by spaces: ``sm_80`` is machine code, which GPUs of the
            same major and no lower minor version run; ``compute_80`` is PTX, which the driver
            compiles for GPUs of that version and all later ones. With an ``a`` behind, either is
            for that version alone, with an ``f`` for its major version.
    """
    major, minor = capability
    runs = []
    for kind, digits, limit in re.findall(r"(sm|compute)_(\d+)([af]?)", codes):
        built = divmod(int(digits), 10)
        same_major = built[0] == major and built[1] <= minor
        is_later = kind == "compute" and not limit and built <= capability
        if built == capability if limit == "a" else same_major or is_later:
            runs.append((kind == "sm", built, f"{kind}_{digits}{limit}"))
    return max(runs)[-1] if runs else None


@cache
def _unserved(name: str, device: str, index: int) -> str | None:
    if name in MISSING:
        return MISSING[name]
    if device != _DEVICES[name]:
        return f"expected a tensor on {_DEVICES[name]}, got {device}"
    capability = device_capability(index) if device == "cuda" else None
    if capability is None:
        # The CPU, an AMD GPU, or a GPU that is not in this machine, of fake tensors.
        return None
    version = ".".join(map(str, capability))
    if name == "triton" and capability < _LEAST_TRITON_CAPABILITY:
        least = ".".join(map(str, _LEAST_TRITON_CAPABILITY))
        return f"Triton needs compute capability {least}, the GPU has {version}"
    if name == "cuda":
        assert _extension.build_info is not None and _extension.build_info["cuda_archs"]
        built = _extension.build_info["cuda_archs"]
        if code_for(capability, built) is None:
            return (
                f"the op library is built for {built}, and the GPU has compute capability "
                f"{version}: reinstall pspfast on this machine or with "
                f"TORCH_CUDA_ARCH_LIST={version}"
            )
    return None


@constant_when_compiled
def why_not(name: str, device: str, index: int = 0) -> str | None:
    """Why this backend does not serve a device, or None where it does. Found out once per device.

    Args:
        name: ``"cpu"``, ``"cuda"`` or ``"triton"``.
        device: its type, ``"cpu"`` or ``"cuda"``.
        index: which GPU.
    """
    return _unserved(name, device, index)


@constant_when_compiled
def default(device: str, index: int = 0, has_cuda_kernel: bool = True) -> str:
    """The backend that ``auto`` takes for tensors on a device: its type, and which GPU it is."""
    for name, served in _DEVICES.items():
        is_there = has_cuda_kernel or name != "cuda"
        if device == served and is_there and _unserved(name, device, index) is None:
            return name
    return "reference"


def select(op: str, tensor: Tensor, *, has_cuda_kernel: bool = True) -> str:
    """The backend that serves ``tensor``.

    Args:
        op: named in errors.
        tensor: the op's first.
        has_cuda_kernel: whether the op has one in CUDA C++; if not, ``triton`` serves for ``cuda``,
            or ``reference`` where that does not serve the device.

    Raises:
        RuntimeError: the chosen backend is missing or does not serve the tensor's device.
    """
    chosen = _select(op, tensor.device.type, tensor.device.index or 0, has_cuda_kernel)
    if is_transformed():
        # torch's operators know the rules of all transforms, those of this project none.
        return "reference"
    if chosen == "triton":
        load_triton_ops()
    return chosen


@constant_when_compiled
def is_transformed() -> bool:
    """Whether a transform of ``torch.func`` or forward-mode differentiation is under way."""
    is_dual = forward_ad._current_level >= 0
    return is_dual or torch._C._functorch.peek_interpreter_stack() is not None


def _select(op: str, device: str, index: int, has_cuda_kernel: bool) -> str:
    if _chosen == "reference":
        return _chosen
    if _chosen == "auto":
        return default(device, index, has_cuda_kernel)
    if _chosen in MISSING:
        raise RuntimeError(f"{op}: backend {_chosen!r} is missing: {MISSING[_chosen]}")
    if reason := why_not(_chosen, device, index):
        raise RuntimeError(f"{op}: backend {_chosen!r}: {reason}")
    if _chosen == "cuda" and not has_cuda_kernel:
        return default(device, index, has_cuda_kernel)
    return _chosen

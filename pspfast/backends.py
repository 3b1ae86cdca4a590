"""Which implementation of the ops serves a tensor.

``cpu`` and ``cuda`` are the C++ and CUDA kernels of ``pspfast._C``, ``triton`` the kernels of
``pspfast.kernels``, ``reference`` plain PyTorch, for every device. ``auto``, the default, takes the
first of them that serves the tensor's device. The environment variable ``PSPFAST_BACKEND`` or
:func:`backend` chooses another. In transforms of ``torch.func`` and forward-mode
differentiation plain PyTorch runs, whatever is chosen.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


def default(device: str) -> str:
    """The backend that ``auto`` takes for tensors on a device of this type."""
    for name, served in _DEVICES.items():
        if device == served and name not in MISSING:
            return name
    return "reference"


def select(op: str, tensor: Tensor, *, has_cuda_kernel: bool = True) -> str:
    """The backend that serves ``tensor``.

    Args:
        op: named in errors.
        tensor: the op's first.
        has_cuda_kernel: whether the op has one in CUDA C++; if not, ``triton`` serves for ``cuda``,
            or ``reference`` where that is missing.

    Raises:
        RuntimeError: the chosen backend is missing or does not serve the tensor's device.
    """
    chosen = _select(op, tensor.device.type)
    if is_transformed():
        # torch's operators know the rules of all transforms, those of this project none.
        return "reference"
    if chosen == "cuda" and not has_cuda_kernel:
        chosen = "reference" if "triton" in MISSING else "triton"
    if chosen == "triton":
        load_triton_ops()
    return chosen


@constant_when_compiled
def is_transformed() -> bool:
    """Whether a transform of ``torch.func`` or forward-mode differentiation is under way."""
    is_dual = forward_ad._current_level >= 0
    return is_dual or torch._C._functorch.peek_interpreter_stack() is not None


def _select(op: str, device: str) -> str:
    if _chosen == "reference":
        return _chosen
    if _chosen == "auto":
        return default(device)
    if _chosen in MISSING:
        raise RuntimeError(f"{op}: backend {_chosen!r} is missing: {MISSING[_chosen]}")
    if device != _DEVICES[_chosen]:
        raise RuntimeError(
            f"{op}: backend {_chosen!r}: expected a tensor on {_DEVICES[_chosen]}, got {device}"
        )
    return _chosen

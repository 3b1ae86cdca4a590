"""A GPU that nobody has: tensors without memory, and this project's operators for GPUs.

The tensors say that they are on the CPU: for others autograd's engine asks a GPU for its streams.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from torch._subclasses.fake_tensor import FakeTensorMode

from pspfast import backends


@contextmanager
def on_an_imagined_gpu() -> Iterator[FakeTensorMode]:
    """What runs inside runs there."""
    served_by = {"triton": "cpu", "cpu": "nothing", "cuda": "nothing"}
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode, mock.patch.dict(backends._DEVICES, served_by):
        yield mode

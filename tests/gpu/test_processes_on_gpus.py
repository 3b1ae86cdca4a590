"""Processes that train together on GPUs, each with a part of the batch, against a single one with
the whole: through NCCL, where each has a GPU of its own, and through gloo on a shared one.

``cpu`` shows without a GPU that these tests can pass.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from processes import run_processes
from synchronized import NormCase, StepCase, joined, run_norms, run_steps

from pspfast import backends

# NCCL takes a single process, too. The op then merges its statistics with nobody's; a network does
# not ask it to.
GPUS = torch.cuda.device_count()
PARTS = (2, 1) if GPUS > 1 else (3,)


def group(backend: str, device: str, parts: tuple[int, ...]) -> Any:
    reason = ""
    if device == "cuda":
        reason = "there is no GPU" if GPUS == 0 else backends.why_not("triton", "cuda") or ""
    skip = pytest.mark.skipif(bool(reason), reason=reason)
    return pytest.param(backend, device, parts, marks=skip, id=f"{backend}-{device}-{len(parts)}")


every_group = pytest.mark.parametrize(
    ("backend", "device", "parts"),
    [
        group("nccl", "cuda", PARTS),
        group("gloo", "cuda", (2, 1)),
        group("gloo", "cpu", (3,)),
    ],
)


@every_group
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_batch_norm_relu(
    backend: str, device: str, parts: tuple[int, ...], dtype: torch.dtype
) -> None:
    x, residual, grad = (torch.randn(3, 19, 7, 5) + shift for shift in (0.5, 0.0, 0.5))
    weight, bias = torch.randn(19), torch.randn(19)
    maps = [t.to(dtype).contiguous(memory_format=torch.channels_last) for t in (x, residual, grad)]
    # A result that the ReLU cuts off in one order of sums it may keep in another.
    case = NormCase(*maps, weight, bias, relu=False, sizes=parts, device=device)
    results = [own for (own,) in run_processes(len(parts), run_norms, [case], backend=backend)]
    got, expected = joined(results), replace(case, device="cpu").run(None)
    assert got.keys() == expected.keys()
    bound = 16 * torch.finfo(dtype).eps
    for name, value in expected.items():
        error = (got[name].double() - value.double()).norm()
        assert error <= bound * value.double().norm(), name


@every_group
@pytest.mark.parametrize("sharding", ["none", "fsdp2"])
def test_training_step(backend: str, device: str, parts: tuple[int, ...], sharding: str) -> None:
    if (backend, device, sharding) == ("gloo", "cuda", "fsdp2"):
        pytest.skip("gloo has none of FSDP's gathering and scattering on GPUs")
    case = StepCase(parts, sharding, dtype=torch.float32, device=device)
    results = [own for (own,) in run_processes(len(parts), run_steps, [case], backend=backend)]
    expected = replace(case, dtype=torch.float64, device="cpu").alone()
    for got, _ in results:
        assert got.keys() == expected.keys()
        for name, value in expected.items():
            # BatchNorm over few values makes thousands of a rounding.
            error = (got[name].double() - value.double()).norm()
            assert error <= 1e-2 * (value.double().norm() + 1e-3), name

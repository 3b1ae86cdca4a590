"""Times ops or a training step on the first GPU, or on the CPU for a try, in a process of its own:
``measure.py ops|training cuda|cpu``. What it finds are lines of JSON, each written at once."""

from __future__ import annotations

import gc
import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import pspfast
from benchmarks.semseg import SemsegPSPNet
from pspfast import backends
from tools.first_gpu.cases import CPU, GPU, Case, cases

DTYPE = torch.bfloat16
# Of the norm of results and gradients: to what float32 has, twice as far as eager mode is in
# bfloat16, and the rounding of its 8 bits.
ROUNDING = 2**-8
STEPS = 10


def tell(**row: object) -> None:
    print(json.dumps(row), flush=True)


def error_line() -> str:
    return traceback.format_exc().strip().splitlines()[-1][:300]


def milliseconds(function: Callable[[], object], device: torch.device) -> float:
    """The median time of a call."""
    if device.type == "cuda":
        from triton.testing import do_bench

        return do_bench(function, warmup=25, rep=100, return_mode="median")
    function()
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return 1e3 * statistics.median(seconds)


def runner(function: Callable[..., Tensor], tensors: list[Tensor], with_backward: bool):
    """A call without arguments that returns the result, then the gradients where asked for."""
    if not with_backward:

        def forward() -> list[Tensor]:
            with torch.no_grad():
                return [function(*tensors)]

        return forward
    out = function(*tensors)
    grad = torch.randn(out.shape, device=out.device).to(out)

    def step() -> list[Tensor]:
        out = function(*tensors)
        return [out.detach(), *torch.autograd.grad(out, tensors, grad)]

    return step


def implementations(case: Case, device: torch.device) -> dict[str, Callable[..., Tensor]]:
    """The op by each backend that serves the device, then its peers."""

    def chosen(name: str, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(*tensors: Tensor) -> Tensor:
            with pspfast.backend(name):
                return function(*tensors)

        return run

    names = ["cpu"] if device.type == "cpu" else ["cuda", "triton"]
    served = [name for name in names if backends.why_not(name, device.type) is None]
    ours = {name: chosen(name, case.function) for name in ["auto", *served]}
    peers = {
        "eager": chosen("reference", case.function),
        "torch.compile": chosen("reference", torch.compile(case.function)),
    }
    return ours | peers


def difference(got: list[Tensor], expected: list[Tensor]) -> float:
    """The largest of results and gradients, relative to its norm; of labels, the share."""

    def of(one: Tensor, other: Tensor) -> float:
        if not one.is_floating_point():
            return (one != other).double().mean().item()
        norm = other.double().norm().item()
        return (one.double() - other.double()).norm().item() / norm if norm else 0.0

    return max(map(of, got, expected))


def measure_case(name: str, case: Case, with_backward: bool, device: torch.device) -> None:
    tensors = case.tensors(device, DTYPE)
    part = "forward and backward" if with_backward else "forward"
    found = implementations(case, device)

    def run_of(function: Callable[..., Tensor], tensors: list[Tensor]):
        # Of the gradient that flows back, the same for all.
        torch.manual_seed(0)
        return runner(function, tensors, with_backward)

    exact_tensors = [t.detach().float().requires_grad_(t.requires_grad) for t in tensors]
    with torch.backends.cudnn.flags(allow_tf32=False):
        exact = run_of(found["eager"], exact_tensors)()
    del exact_tensors
    of_eager = 0.0
    # Eager first, to which the others are compared.
    for label in sorted(found, key=lambda label: label != "eager"):
        row: dict[str, object] = {"kind": "op", "op": name, "part": part, "by": label}
        try:
            run = run_of(found[label], tensors)
            with FlopCounterMode(display=False) as counter:
                results = run()
            error = difference(results, exact)
            of_eager = error if label == "eager" else of_eager
            row |= {"difference": error, "wrong": error > 2 * of_eager + ROUNDING}
            # What has to be read and written at least: x again for a gradient, and that.
            moved = sum(t.nbytes for t in [*tensors, *results])
            moved += sum(t.nbytes for t in tensors) if with_backward else 0
            row |= {"flops": counter.get_total_flops(), "bytes": moved}
            row["ms"] = milliseconds(run, device)
        except Exception:
            row["error"] = error_line()
        tell(**row)


def measure_ops(device: torch.device) -> None:
    for name, case in cases(GPU if device.type == "cuda" else CPU).items():
        for with_backward in (False, True) if case.has_gradient else (False,):
            try:
                measure_case(name, case, with_backward, device)
            except Exception:
                tell(kind="op", op=name, by="all", error=error_line())
            gc.collect()


def measure_step(label: str, dtype: torch.dtype, device: torch.device) -> None:
    """A training step of PSPNet50 with SGD, ours or semseg's in eager mode."""
    size = GPU if device.type == "cuda" else CPU
    torch.manual_seed(0)
    model: torch.nn.Module = pspfast.PSPNet(50, classes=size.classes, dropout=0.0)
    if label == "eager":
        model = SemsegPSPNet(model.state_dict())
    model = model.to(device, memory_format=torch.channels_last).train()
    images = torch.randn(size.batch + (device.type == "cpu"), 3, size.image, size.image)
    images = images.to(device, memory_format=torch.channels_last)
    target = torch.randint(size.classes, (len(images), size.image, size.image), device=device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)

    def step() -> Tensor:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            if label == "eager":
                main_loss, aux_loss = model.losses(images, target)
            else:
                _, main_loss, aux_loss = model(images, target)
        loss = main_loss + 0.4 * aux_loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    row: dict[str, object] = {"kind": "training step", "by": label, "dtype": str(dtype)}
    row["images"] = len(images)
    row["loss"] = step().item()
    step()
    seconds = []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(STEPS if device.type == "cuda" else 1):
        start = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    row["ms"] = 1e3 * statistics.median(seconds)
    if device.type == "cuda":
        row["GiB at the peak"] = torch.cuda.max_memory_allocated() / 2**30
    tell(**row)


def measure_training(device: torch.device) -> None:
    for dtype in (torch.bfloat16, torch.float32):
        for label in ("ours", "eager"):
            try:
                measure_step(label, dtype, device)
            except Exception:
                tell(kind="training step", by=label, dtype=str(dtype), error=error_line())
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()


if __name__ == "__main__":
    what, kind = sys.argv[1:]
    {"ops": measure_ops, "training": measure_training}[what](torch.device(kind))

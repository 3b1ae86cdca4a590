"""What torch.compile makes of the Triton kernels: it copies their source into a file of its own,
and finds out which tensors they write, of which it makes copies where others must not see that."""

from __future__ import annotations

import dis
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._higher_order_ops import triton_kernel_wrap
from torch._inductor.codegen.wrapper import (
    user_defined_triton_kernel_transitive_closure_source_code as copied_source,
)
from triton import JITFunction
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from tools.machine_code import noted_launches
from tools.network_calls import network_calls

# Pointers of the tensors that a kernel writes.
WRITTEN = {
    "_conv_kernel": {"p_out"},
    "_grad_weight_kernel": {"p_grad_weight"},
    "moments_kernel": {"p_moments"},
    "merge_moments_kernel": {"p_statistics", "p_running_mean", "p_running_var", "p_batches"},
    "merge_statistics_kernel": {"p_statistics", "p_running_mean", "p_running_var", "p_batches"},
    "apply_kernel": {"p_out"},
    "grad_sums_kernel": {"p_grad_residual", "p_sums"},
    "add_sums_kernel": {"p_total"},
    "grad_input_kernel": {"p_grad_x"},
    "pool_fwd_kernel": {"p_pooled"},
    "pool_bwd_kernel": {"p_grad_x"},
    "add_fwd_kernel": {"p_out"},
    "concat_fwd_kernel": {"p_out"},
    "bwd_kernel": {"p_grad_values"},
    "upsample_add_fwd_kernel": {"p_out"},
    "upsample_add_bwd_kernel": {"p_grad_level"},
    "loss_fwd_kernel": {"p_labels", "p_lse", "p_sums"},
    "mean_loss_kernel": {"p_loss", "p_weight_sum", "p_all_right"},
    "loss_bwd_kernel": {"p_grad_logits"},
    "argmax_kernel": {"p_labels"},
    "softmax_kernel": {"p_out"},
}


def launches_of_network() -> Iterator[Any]:
    """One of every kernel and memory format."""
    seen = set()
    for call in network_calls():
        if call.dtype != torch.float16:
            continue
        with noted_launches() as launches:
            call.triton()
        for launch in launches.taken():
            key = (launch.kernel.__name__, call.channels_last)
            if key not in seen:
                seen.add(key)
                yield pytest.param(
                    launch, id=f"{key[0]}-{'channels_last' if key[1] else 'contiguous'}"
                )


every_launch = pytest.mark.parametrize("launch", list(launches_of_network()))


@pytest.fixture
def sm_90(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton compiles for it, though there may be no GPU."""

    class Driver:
        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", 90, 32)

        def get_current_device(self) -> int:
            return 0

    monkeypatch.setattr(driver, "_active", Driver())


@every_launch
def test_source_is_copied_with_all_that_it_names(launch: Any, tmp_path: Path) -> None:
    """The copy has functions and constants, but no classes."""
    path = tmp_path / "copy.py"
    prologue = "import triton\nimport triton.language as tl\n\n@triton.jit\n"
    path.write_text(prologue + copied_source(launch.kernel))
    spec = importlib.util.spec_from_file_location("copied_kernel", path)
    assert spec is not None and spec.loader is not None
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    functions = [value for value in vars(copy).values() if isinstance(value, JITFunction)]
    named = {
        instruction.argval
        for function in functions
        for instruction in dis.Bytecode(function.fn)
        if instruction.opname == "LOAD_GLOBAL"
    }
    builtins = {"float", "len", "range"}
    assert named - builtins <= set(vars(copy))


@pytest.mark.skipif(
    not hasattr(triton_kernel_wrap, "identify_accessed_tensors"),
    reason="this torch has its analysis by another name",
)
@every_launch
@pytest.mark.usefixtures("sm_90")
def test_written_tensors(launch: Any) -> None:
    accessed = triton_kernel_wrap.identify_accessed_tensors(launch.kernel, launch.args, {})
    names = {write.name for write in accessed.read_writes.writes}
    written = {name for name in names if isinstance(launch.args.get(name), Tensor)}
    assert written == WRITTEN[launch.kernel.__name__]

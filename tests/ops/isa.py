"""Conversions of 16-bit types, run by test_pyramid_pool.py in a process whose ATEN_CPU_CAPABILITY
picks a instruction set."""

import os

import torch

from pspfast.ops import pyramid_pool

expected = {"default": "DEFAULT", "avx2": "AVX2", "avx512": "AVX512"}
isa = expected[os.environ["ATEN_CPU_CAPABILITY"]]
found = torch.backends.cpu.get_cpu_capability()
assert found == isa, f"expected {isa}, got {found}"

for dtype in (torch.float16, torch.bfloat16):
    for value in (float("nan"), float("inf"), -float("inf")):
        x = torch.full((1, 16, 2, 2), value, dtype=dtype)
        assert pyramid_pool(x, (1,)).isfinite().logical_not().all()
        torch.testing.assert_close(
            pyramid_pool(x, (1,)), torch.full((1, 16, 1), value, dtype=dtype), equal_nan=True
        )

torch.manual_seed(0)
# Rounding is to nearest, ties to even: the gradient of a mean of three is a third of each value.
for dtype in (torch.float16, torch.bfloat16):
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x = torch.zeros(1, 4099, 1, 3, dtype=dtype).contiguous(memory_format=memory_format)
        x.requires_grad_()
        grad = torch.randn(1, 4099, 1).to(dtype)
        pyramid_pool(x, (1,)).backward(grad)
        assert torch.equal(x.grad[:, :, 0], (grad.float() / 3).to(dtype).expand(-1, -1, 3))

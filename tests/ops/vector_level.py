"""Run by test_pyramid_pool.py in a process whose ATEN_CPU_CAPABILITY picks a vector level."""

import os

import torch
import torch.nn.functional as F

from pspfast.ops import pyramid_pool

expected = {"default": "DEFAULT", "avx2": "AVX2", "avx512": "AVX512"}
level = expected[os.environ["ATEN_CPU_CAPABILITY"]]
found = torch.backends.cpu.get_cpu_capability()
# A processor without AVX-512 runs what it has, as a user's would.
assert found == level or level == "AVX512", f"expected {level}, got {found}"

torch.manual_seed(0)
bins = (1, 2, 3, 6)
for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(2, 37, 29, 23).to(dtype).contiguous(memory_format=memory_format)
        x.requires_grad_()
        exact = x.detach().double().requires_grad_()
        ours = pyramid_pool(x, bins)
        reference = torch.cat([F.adaptive_avg_pool2d(exact, b).flatten(2) for b in bins], 2)
        grad = torch.randn_like(ours)
        ours.backward(grad)
        reference.backward(grad.double())
        # One rounding to the dtype: half an ulp of values below 4, and float32's own sums.
        tolerance = 2 * torch.finfo(dtype).eps + 1e-6 * (dtype != torch.float64)
        torch.testing.assert_close(ours.double(), reference, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(x.grad.double(), exact.grad, rtol=tolerance, atol=tolerance)

for dtype in (torch.float16, torch.bfloat16):
    for value in (float("nan"), float("inf"), -float("inf")):
        x = torch.full((1, 16, 2, 2), value, dtype=dtype)
        assert pyramid_pool(x, (1,)).isfinite().logical_not().all()
        torch.testing.assert_close(
            pyramid_pool(x, (1,)), torch.full((1, 16, 1), value, dtype=dtype), equal_nan=True
        )

# Rounding is to nearest, ties to even: the gradient of a mean of three is a third of each value.
for dtype in (torch.float16, torch.bfloat16):
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x = torch.zeros(1, 4099, 1, 3, dtype=dtype).contiguous(memory_format=memory_format)
        x.requires_grad_()
        grad = torch.randn(1, 4099, 1).to(dtype)
        pyramid_pool(x, (1,)).backward(grad)
        assert torch.equal(x.grad[:, :, 0], (grad.float() / 3).to(dtype).expand(-1, -1, 3))

"""The CPU kernels compiled for aarch64 and run by an emulator, against those of this processor."""

import os
import shutil
import struct
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils import cpp_extension

from pspfast import _extension

ROOT = Path(__file__).parents[1]
GXX, QEMU = "aarch64-linux-gnu-g++", "qemu-aarch64"
pytestmark = [
    pytest.mark.skipif(_extension.load_error is not None, reason="there is no op library"),
    *(
        pytest.mark.skipif(shutil.which(tool) is None, reason=f"{tool} is not there")
        for tool in (GXX, QEMU)
    ),
]

# -O1 compiles in half the time of setup.py's -O3.
FLAGS = ("-O1", "-std=c++20", "-Wno-psabi", "-static", "-DTORCH_TARGET_VERSION=0x20a000000000000")
# In the numbers of DType in csrc/dtype.h.
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)
BINS = [1, 2, 3, 6]
Kernel = Callable[[str, list[int], list[Tensor | None]], None]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Kernel:
    """``run(kernel, numbers, buffers)`` runs one of tools/aarch64/run_kernels.cpp on aarch64; the
    buffers, None where the kernel gets no pointer, become what it leaves in them."""
    folder = tmp_path_factory.mktemp("aarch64")
    includes = [f"-I{path}" for path in cpp_extension.include_paths("cpu")]
    sources = [*ROOT.glob("csrc/cpu/*.cpp"), ROOT / "tools/aarch64/run_kernels.cpp"]

    def compile_one(source: Path) -> Path:
        target = folder / f"{source.stem}.o"
        subprocess.run([GXX, *FLAGS, *includes, "-c", source, "-o", target], check=True)
        return target

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        objects = list(threads.map(compile_one, sources))
    program = folder / "run_kernels"
    subprocess.run([GXX, *FLAGS, *objects, "-o", program], check=True)

    def call(kernel: str, numbers: list[int], buffers: list[Tensor | None]) -> None:
        given = [struct.pack("q", len(numbers)), struct.pack(f"{len(numbers)}q", *numbers)]
        given.append(struct.pack("q", len(buffers)))
        for buffer in buffers:
            data = b"" if buffer is None else bytes_of(buffer).numpy().tobytes()
            given += [struct.pack("q", len(data)), data]
        command = [QEMU, str(program), kernel]
        left = subprocess.run(command, input=b"".join(given), capture_output=True, check=True)
        there = [buffer for buffer in buffers if buffer is not None]
        sizes = [bytes_of(buffer).numel() for buffer in there]
        results = torch.frombuffer(bytearray(left.stdout), dtype=torch.uint8).split(sizes)
        for buffer, result in zip(there, results, strict=True):
            bytes_of(buffer).copy_(result)

    return call


def bytes_of(tensor: Tensor) -> Tensor:
    """The tensor's memory, in its order there."""
    if tensor.dim() == 4 and not tensor.is_contiguous():
        tensor = tensor.permute(0, 2, 3, 1)
    return (
        tensor.reshape(-1).view(torch.uint8) if tensor.is_contiguous() else pytest.fail("strided")
    )


def sums(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def of(dtype: torch.dtype) -> int:
    return DTYPES.index(dtype)


def channels_last(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape).to(dtype, memory_format=torch.channels_last)


def close(got: Tensor, expected: Tensor) -> None:
    """To the rounding of the type: the order of sums and fused multiplications differ."""
    rounding = {
        torch.float64: 1e-12,
        torch.float32: 2e-5,
        torch.float16: 2e-3,
        torch.bfloat16: 2e-2,
    }
    tolerance = rounding[got.dtype]
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("is_channels_last", [False, True], ids=["contiguous", "channels_last"])
@EACH_DTYPE
def test_pyramid_pool(run: Kernel, dtype: torch.dtype, is_channels_last: bool) -> None:
    shape = (2, 37, 13, 11)
    x = torch.randn(shape).to(dtype)
    x = x.to(memory_format=torch.channels_last) if is_channels_last else x
    numbers = [*shape, is_channels_last, of(dtype), *BINS]
    expected = torch.ops.pspfast.pyramid_pool(x, BINS)
    pooled = torch.full((2, 50, 37) if is_channels_last else (2, 37, 50), torch.nan, dtype=dtype)
    run("pyramid_pool", numbers, [x, pooled])
    close(pooled.transpose(1, 2) if is_channels_last else pooled, expected)
    grad_x = torch.full_like(x, torch.nan)
    run("pyramid_pool_backward", numbers, [pooled, grad_x])
    close(grad_x, torch.ops.pspfast.pyramid_pool_backward(expected, BINS, 13, 11, is_channels_last))


@pytest.mark.parametrize("is_channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_16_bit_number_bit_for_bit(
    run: Kernel, dtype: torch.dtype, is_channels_last: bool
) -> None:
    """Means of two numbers and their sums, rounded: denormal ones, infinities and NaN too."""
    every = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(dtype)
    # Sums of neighbours are often halfway between two numbers.
    pairs = torch.stack([every, every.roll(1)], 1)
    stored = pairs.t().contiguous() if is_channels_last else pairs
    numbers = [1, len(every), 2, 1, is_channels_last, of(dtype), 1]
    means = torch.zeros_like(every)
    expected = torch.ops.pspfast.pyramid_pool(pairs[None, ..., None], [1])
    run("pyramid_pool", numbers, [stored, means])
    same_bits(means, expected.flatten())
    added, bins = torch.zeros_like(every), [1, 1]
    expected = torch.ops.pspfast.pyramid_pool_backward(pairs[None], bins, 1, 1, is_channels_last)
    numbers = [1, len(every), 1, 1, is_channels_last, of(dtype), *bins]
    run("pyramid_pool_backward", numbers, [stored, added])
    same_bits(added, expected.flatten())


def same_bits(got: Tensor, expected: Tensor) -> None:
    is_number = ~expected.isnan()
    assert torch.equal(got.isnan(), ~is_number)
    assert torch.equal(got[is_number].view(torch.int16), expected[is_number].view(torch.int16))


@EACH_DTYPE
def test_pyramid_conv2d(run: Kernel, dtype: torch.dtype) -> None:
    batch, out, channels, reduction, k = 2, 19, 5, 3, 3
    priors = torch.randn(batch, reduction, 50).to(dtype)
    weight = torch.randn(out, channels + len(BINS) * reduction, k, k).to(dtype)
    ops = torch.ops.pspfast
    mixed, weight_x = ops.pyramid_mix(priors, weight, BINS, False)
    got = [torch.full_like(mixed, torch.nan), torch.full_like(weight_x, torch.nan)]
    rows = priors.transpose(1, 2).contiguous()
    numbers = [batch, out, channels, reduction, k * k, of(dtype), *BINS]
    run("pyramid_mix", numbers, [rows, weight, *got])
    close(got[0], mixed)
    close(got[1], weight_x)
    grads = ops.pyramid_mix_backward(mixed, weight_x, priors, weight, BINS, False)
    filters_first = mixed.permute(4, 0, 1, 2, 3).contiguous()
    got = [torch.full_like(rows, torch.nan), torch.full_like(weight, torch.nan)]
    run("pyramid_mix_backward", numbers, [filters_first, weight_x, rows, weight, *got])
    # Sums over dozens of numbers of the size of tens.
    close(got[0].transpose(1, 2) / 100, grads[0] / 100)
    close(got[1] / 100, grads[1] / 100)

    base = channels_last(batch, out, 13, 11, dtype=dtype)
    bias = torch.randn(out).to(dtype)
    map_ = torch.full_like(base, torch.nan)
    numbers = [batch, out, 13, 11, True, of(dtype), k, True, *BINS]
    run("pyramid_upsample", numbers, [base, bias, mixed, map_])
    close(map_, ops.pyramid_upsample_add(base, mixed, bias, BINS, True, True))
    grad_mixed = torch.full_like(mixed, torch.nan)
    run("pyramid_upsample_backward", numbers, [base, grad_mixed])
    close(grad_mixed, ops.pyramid_upsample_add_backward(base, BINS, True, k))


@EACH_DTYPE
def test_upsample_concat_conv2d(run: Kernel, dtype: torch.dtype) -> None:
    size, out, k = [13, 11], 21, 3
    maps = [channels_last(2, c, *s, dtype=dtype) for c, s in ((5, (13, 11)), (18, (7, 4)))]
    weight, bias = torch.randn(out, 23, k, k).to(dtype) / 10, torch.randn(out).to(dtype)
    numbers = [2, *size, 23, out, k, False, False, of(dtype)]
    numbers += [n for m in maps for n in (m.shape[1], *m.shape[2:])]
    ops = torch.ops.pspfast
    expected = ops.upsample_concat_conv2d(maps, weight, bias, size, False, False, True)
    result = torch.full_like(expected, torch.nan)
    run("upsample_concat_conv2d", numbers, [weight, bias, result, *maps])
    close(result, expected)
    grad, last = expected, maps[-1]
    expected = ops.upsample_concat_conv2d_grad_map(grad, weight, 5, 18, [7, 4], False, False, True)
    result = torch.full_like(last, torch.nan)
    run("upsample_concat_conv2d_grad_map", numbers, [grad, weight, result, *maps])
    close(result / 10, expected / 10)
    expected = ops.upsample_concat_conv2d_grad_weight(grad, maps, k, False, False, False)
    result = torch.full_like(expected, torch.nan)
    run("upsample_concat_conv2d_grad_weight", numbers, [grad, result, *maps])
    close(result / 100, expected / 100)


@EACH_DTYPE
def test_batch_norm_relu(run: Kernel, dtype: torch.dtype) -> None:
    x, residual, grad = (channels_last(3, 21, 5, 7, dtype=dtype) for _ in range(3))
    weight, bias = torch.rand(21, dtype=sums(dtype)), torch.randn(21, dtype=sums(dtype))
    numbers, ops, eps = [3 * 5 * 7, 21, of(dtype)], torch.ops.pspfast, 1e-5
    statistics = ops.batch_norm_statistics(x, None, None, None, 0.0)
    result = torch.full_like(statistics, torch.nan)
    run("batch_norm_statistics", numbers, [x, result])
    close(result, statistics)
    inputs = [x, residual, statistics, weight, bias]
    out = torch.full_like(x, torch.nan)
    run("batch_norm_relu", numbers, [*inputs, out])
    close(out, ops.batch_norm_relu(x, statistics, weight, bias, residual, True, eps))
    given = (grad, x, statistics, weight, bias, residual, True, eps)
    grad_sums, grad_residual = ops.batch_norm_relu_grad_sums(*given)
    got = [torch.full_like(x, torch.nan), torch.full_like(grad_sums, torch.nan)]
    run("batch_norm_relu_grad_sums", numbers, [*inputs, grad, *got])
    close(got[0], grad_residual)
    close(got[1], grad_sums)
    expected = ops.batch_norm_relu_grad_input(
        grad, x, statistics, grad_sums, weight, bias, True, eps
    )
    inputs[1] = None
    run("batch_norm_relu_grad_input", numbers, [*inputs, grad, grad_sums, out])
    close(out, expected)


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_dilated_conv2d(run: Kernel, dtype: torch.dtype) -> None:
    x, residual = (channels_last(1, c, 17, 19, dtype=dtype) for c in (17, 33))
    weight, bias = torch.randn(33, 17, 3, 3).to(dtype) / 10, torch.randn(33).to(dtype)
    ops, numbers = torch.ops.pspfast, [1, 17, 19, 17, 33, 2, of(dtype)]
    assert ops.winograd_is_faster(1, 17, 33, 17, 19, 2, dtype)
    out = torch.full_like(residual, torch.nan)
    run("winograd_conv2d", numbers, [x, weight, bias, residual, out])
    close(out, ops.dilated_conv2d(x, weight, bias, 2, residual, True))
    grad_weight = torch.full(weight.shape, torch.nan)
    run("winograd_weight_gradient", numbers, [x, residual, grad_weight])
    expected = ops.dilated_conv2d_grad_weight(residual, x, 2, False)
    close(grad_weight.to(dtype) / 10, expected / 10)


@EACH_DTYPE
def test_depthwise_conv2d(run: Kernel, dtype: torch.dtype) -> None:
    x = channels_last(2, 37, 9, 8, dtype=dtype)
    weight, bias = torch.randn(37, 1, 3, 3).to(dtype), torch.randn(37).to(dtype)
    out = torch.full_like(x, torch.nan)
    run("depthwise_conv2d", [2, 37, 9, 8, 3, 4, of(dtype)], [x, weight, bias, out])
    close(out, torch.ops.pspfast.depthwise_conv2d(x, weight, bias, 4, True))


@pytest.mark.parametrize("is_channels_last", [False, True], ids=["contiguous", "channels_last"])
@EACH_DTYPE
def test_logits(run: Kernel, dtype: torch.dtype, is_channels_last: bool) -> None:
    logits = torch.randn(2, 21, 5, 7).to(dtype)
    logits = logits.to(memory_format=torch.channels_last) if is_channels_last else logits
    logits[1, 3, 2, 2], logits[1, :4, 0, 0] = -torch.inf, 1
    size, ops = (17, 25), torch.ops.pspfast
    numbers = [2, 21, 5, 7, *size, True, is_channels_last, of(dtype)]
    target = torch.randint(0, 21, (2, *size))
    target[:, :3] = 255
    weight = torch.rand(21, dtype=sums(dtype))

    with_nan = logits.clone(memory_format=torch.preserve_format)
    with_nan[0, 5, 1, 1] = torch.nan
    labels = torch.full((2, *size), 77, dtype=torch.int32)
    run("upsample_argmax", numbers, [with_nan, labels])
    expected = ops.upsample_argmax(with_nan, *size, True, torch.int32)
    assert (labels == 5).sum() >= 9
    assert (labels == expected).double().mean() > 0.99

    probabilities = torch.full((2, 21, *size), torch.nan, dtype=sums(dtype))
    run("upsample_softmax", numbers, [logits, probabilities])
    close(probabilities, ops.upsample_softmax(logits, *size, True, True, 0.5))

    logits[1, 3, 2, 2] = 0
    expected_loss, lse, weights, _ = ops.upsample_cross_entropy(
        logits, target, weight, 255, True, 0.1, False
    )
    got = [torch.full_like(t, torch.nan) for t in (lse, expected_loss, weights)]
    run("upsample_cross_entropy", numbers, [logits, target, weight, *got])
    is_read = target != 255
    close(got[0][is_read], lse[is_read])
    close(got[1], expected_loss)
    close(got[2] / 100, weights / 100)
    scale, grad = torch.ones((), dtype=sums(dtype)), torch.full_like(logits, torch.nan)
    run("upsample_cross_entropy_backward", numbers, [logits, target, weight, lse, scale, grad])
    given = (scale, logits, target, weight, lse, 255, True, 0.1)
    close(grad / 10, ops.upsample_cross_entropy_backward(*given) / 10)

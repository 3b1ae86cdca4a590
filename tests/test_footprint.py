"""What is counted is right, and PSPNet50 costs a GPU no more than it should."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed._tools.fake_collectives
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from waits import waits

from pspfast import PSPNet
from pspfast.distributed import DDP_OPTIONS
from pspfast.ops import (
    batch_norm_relu,
    dilated_conv2d,
    pyramid_conv2d,
    upsample_concat_conv2d,
)
from tools.footprint import models
from tools.footprint import pspnet as footprint
from tools.footprint.imagined_gpu import on_an_imagined_gpu
from tools.operator_costs import Cost, Footprint
from tools.roofline import least_seconds

FLOAT = 4


def test_bytes_launches_and_memory() -> None:
    with FakeTensorMode():
        x = torch.empty(10, 100)
        with Footprint([x]) as counted:
            y = x.t().contiguous()  # The view is free.
            torch.empty(1000)  # And gone.
            y.add_(1)
            del y
            z = x[:, :50] * 2
    assert counted.costs["clone"] == [Cost(1, 0, 2 * 1000 * FLOAT)]
    assert counted.costs["add_"] == [Cost(1, 0, 2 * 1000 * FLOAT)]
    assert counted.costs["mul"] == [Cost(1, 0, 2 * 500 * FLOAT)]
    assert counted.total.launches == 3
    assert counted.peak_bytes == (1000 + 1000 + 1000) * FLOAT
    assert counted.live_bytes == (x.numel() + z.numel()) * FLOAT


def flops(function: Callable[..., Tensor], *shapes: tuple[int, ...]) -> int:
    with on_an_imagined_gpu():
        tensors = [torch.empty(shape, requires_grad=True) for shape in shapes]
        with Footprint(tensors) as counted:
            function(*tensors).sum().backward()
    return counted.total.flops


def test_dilated_convolution_has_the_flops_of_the_direct_one() -> None:
    shapes = (2, 8, 13, 11), (16, 8, 3, 3)
    ours = flops(lambda x, w: dilated_conv2d(x, w, dilation=2), *shapes)
    assert ours == flops(lambda x, w: F.conv2d(x, w, padding=2, dilation=2), *shapes)
    assert ours == 3 * 2 * 2 * 13 * 11 * 8 * 16 * 9


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_convolution_of_maps_of_several_sizes_has_a_third_of_the_flops(kernel_size: int) -> None:
    """1 + 1/4 + 1/16 + 1/64 of 4, and a little for interpolation; gradients twice that."""
    maps = [torch.randn(1, 256, 64 >> i, 64 >> i, requires_grad=True) for i in range(4)]
    weight = torch.randn(256, 1024, kernel_size, kernel_size, requires_grad=True)
    with FlopCounterMode(display=False) as forward:
        out = upsample_concat_conv2d(maps, weight)
    with FlopCounterMode(display=False) as backward:
        out.sum().backward()
    eager = 2 * weight.numel() * 64 * 64
    assert 0.332 * eager < forward.get_total_flops() < 0.34 * eager
    assert backward.get_total_flops() == 2 * forward.get_total_flops()


def test_convolution_of_maps_of_several_sizes_on_a_gpu() -> None:
    """The largest layer of UPerNet at 512×512, in bfloat16."""

    def count(convolve: Callable[[list[Tensor], Tensor], Tensor]) -> Footprint:
        with on_an_imagined_gpu():
            format = {"dtype": torch.bfloat16, "memory_format": torch.channels_last}
            maps = [torch.empty(16, 512, 128 >> i, 128 >> i, **format) for i in range(4)]
            weight = torch.empty(512, 2048, 3, 3, **format)
            with Footprint([*maps, weight]) as counted:
                convolve(maps, weight)
        return counted

    def concatenate(maps: list[Tensor], weight: Tensor) -> Tensor:
        resized = [F.interpolate(m, (128, 128), mode="bilinear") for m in maps[1:]]
        return F.conv2d(torch.cat([maps[0], *resized], 1), weight, padding=1)

    ours, eager = count(upsample_concat_conv2d), count(concatenate)
    assert ours.total.flops < 0.34 * eager.total.flops
    # Mixed maps are written and read: nine numbers for one of a map's.
    assert ours.total.bytes < 0.64 * eager.total.bytes
    assert ours.peak_bytes < 0.77 * eager.peak_bytes


@pytest.mark.parametrize("nearest", [False, True])
@pytest.mark.parametrize("kernel_size", [1, 3])
def test_maps_are_neither_interpolated_nor_concatenated_on_a_gpu(
    kernel_size: int, nearest: bool
) -> None:
    """Maps are many times wider than the result: an interpolated one would be the largest."""
    channels, size = 512, 32
    largest = 0

    class Allocations(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            made = [t.numel() for t in tree_leaves(out) if isinstance(t, Tensor)]
            largest = max([largest, *made])
            return out

    with on_an_imagined_gpu():
        maps = [torch.empty(1, channels, s, s, requires_grad=True) for s in (8, 4, 16)]
        weight = torch.empty(8, 3 * channels, kernel_size, kernel_size, requires_grad=True)
        options = {"mode": "nearest" if nearest else "bilinear", "relu": True}
        with Allocations():
            out = upsample_concat_conv2d(maps, weight, (size, size), **options)
            out.sum().backward()
    assert out.shape == (1, 8, size, size)
    assert [m.grad.shape for m in maps] == [m.shape for m in maps]
    # The largest map and its gradient are a quarter of an interpolated one.
    assert largest == channels * 16 * 16 < channels * size * size


def test_pyramid_convolution_has_half_the_flops() -> None:
    shapes = (1, 64, 60, 60), (1, 16, 50), (32, 128, 3, 3)
    ours = flops(lambda x, p, w: pyramid_conv2d(x, p, w, (1, 2, 3, 6)), *shapes)
    eager = flops(lambda x, w: F.conv2d(x, w, padding=1), (1, 128, 60, 60), shapes[2])
    assert 0.5 < ours / eager < 0.65


def test_batch_norm_relu_reads_a_map_twice_and_writes_it_once() -> None:
    with on_an_imagined_gpu():
        x = torch.empty(2, 16, 10, 10).contiguous(memory_format=torch.channels_last)
        weight, running = torch.empty(16), torch.empty(16)
        with Footprint([x]) as counted:
            batch_norm_relu(x, running, None, weight, weight)
    (statistics,), (result,) = (
        counted.costs[name] for name in ("batch_norm_statistics", "batch_norm_relu")
    )
    # x; the running mean, which is written too; mean, variance and count.
    assert statistics.bytes == (3200 + 2 * 16 + 2 * 16 + 1) * FLOAT
    # x, the result; weight, which is the bias too; mean, variance and count.
    assert result.bytes == (2 * 3200 + 16 + 2 * 16 + 1) * FLOAT
    assert counted.total.launches == 2


def test_least_time_is_of_arithmetic_or_of_memory() -> None:
    costs = [Cost(1, flops=100, bytes=10), Cost(1, flops=10, bytes=100)]
    assert least_seconds(costs, flops_per_second=10, bandwidth=20) == 10 + 5


@pytest.mark.parametrize(
    ("task", "flops", "moved", "peak"),
    [
        ("inference, 1 image", 0.80, 0.40, 0.80),
        ("inference, 16 images", 0.80, 0.40, 0.60),
        ("training step, 16 images", 0.81, 0.78, 0.60),
    ],
)
def test_ours_over_eager(task: str, flops: float, moved: float, peak: float) -> None:
    ours, eager = footprint.count(task, "ours"), footprint.count(task, "eager")
    by = footprint.ratios(ours, eager)
    assert by["FLOPs"] <= flops
    assert by["bytes"] <= moved
    assert by["peak memory"] <= peak
    assert ours.total.launches <= eager.total.launches


def test_eager_is_what_is_known_of_it() -> None:
    """Of a step of 16 images 16.4 TFLOP and 24 GiB, of an image 0.324 TFLOP."""
    step = footprint.count("training step, 16 images", "eager")
    assert step.total.flops == pytest.approx(16.4e12, rel=0.01)
    assert step.peak_bytes == pytest.approx(24 * 2**30, rel=0.02)
    image = footprint.count("inference, 1 image", "eager")
    assert image.total.flops == pytest.approx(0.324e12, rel=0.01)


def test_one_of_several_processes_needs_the_memory_of_one_alone_and_buckets() -> None:
    """Buckets are as large as the parameters. Gradients are in them, not beside them: at the peak,
    where those of the head are there, DDP adds less than its buckets."""
    buckets = 0

    def sum_up(_: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        """What DDP does by itself, which takes its result from a group that tensors without memory
        do not reach."""
        nonlocal buckets
        buckets += bucket.buffer().nbytes
        dist.all_reduce(bucket.buffer())
        summed: torch.futures.Future[Tensor] = torch.futures.Future()
        summed.set_result(bucket.buffer())
        return summed

    def distribute(model: nn.Module) -> nn.Module:
        # To compare and send parameters at the start, it would read them.
        shared = DistributedDataParallel(model, init_sync=False, **DDP_OPTIONS.to_kwargs())
        shared.register_comm_hook(None, sum_up)
        # After DDP, which refuses SyncBatchNorm on what says that it is a CPU.
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return shared

    dist.init_process_group("fake", rank=0, world_size=8, store=FakeStore())
    try:
        with on_an_imagined_gpu():
            shared = footprint.train("ours", 16, distribute)
    finally:
        dist.destroy_process_group()
    assert len(shared.costs["batch_norm_merge_statistics"]) == 61
    alone = footprint.count("training step, 16 images", "ours")
    parameters = PSPNet(50, classes=footprint.CLASSES).parameters()
    assert buckets == sum(p.nbytes for p in parameters)
    assert 0 < shared.peak_bytes - alone.peak_bytes < buckets


def test_a_training_step_does_nothing_that_a_cuda_graph_forbids() -> None:
    """Tensors without memory raise an error where their values are looked at; nor are numbers
    copied from the host."""

    def built(model: nn.Module) -> nn.Module:
        reads.found.clear()
        return model

    with waits() as reads, on_an_imagined_gpu():
        footprint.train("ours", 2, built)
    assert reads.found == []
    assert reads.operators > 500


def test_another_librarys_model() -> None:
    """SegFormer-B0's linear layers and their fusion are a third of it; logits of 150 classes are 16
    times those of a quarter of the resolution."""
    sides = ("eager", "ours")
    eager, ours = (models.count("SegFormer-B0", s, training=False, batch=1) for s in sides)
    assert "upsample_argmax" in ours.costs and "upsample_argmax" not in eager.costs
    by = footprint.ratios(ours, eager)
    assert by["FLOPs"] < 0.45 and by["bytes"] < 0.5 and by["peak memory"] < 0.5
    assert ours.total.launches < eager.total.launches

"""GPUs that have less shared memory than a configuration takes, and AMD's: no such machine is
needed, Triton compiles for them all the same."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.autotuner import Autotuner

from pspfast.kernels import dilated_conv2d as launchers
from pspfast.kernels.jit import dilated_conv2d as kernels
from pspfast.kernels.jit import dilated_conv2d_boxes as box_kernels
from tools.machine_code import TritonLaunch
from tools.network_calls import network_calls

KB = 1024
# With the shared memory that each lends a block, as NVIDIA's and AMD's documents have it.
CHIPS = {
    "A100": (GPUTarget("cuda", 80, 32), 163 * KB),
    "RTX 3090": (GPUTarget("cuda", 86, 32), 99 * KB),
    "H100": (GPUTarget("cuda", 90, 32), 227 * KB),
    "RTX 5090": (GPUTarget("cuda", 120, 32), 99 * KB),
    "MI200": (GPUTarget("hip", "gfx90a", 64), 64 * KB),
    "MI300": (GPUTarget("hip", "gfx942", 64), 64 * KB),
    "RX 7900": (GPUTarget("hip", "gfx1100", 32), 64 * KB),
}
AMD = ("MI300", "RX 7900")


@pytest.fixture
def chip(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The current GPU, to which its properties are faked."""
    target, shared = CHIPS[request.param]
    utils = SimpleNamespace(get_device_properties=lambda device: {"max_shared_mem": shared})
    driver = SimpleNamespace(utils=utils, get_current_device=lambda: 0)
    monkeypatch.setattr(triton.runtime.driver, "_active", driver)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    capability = divmod(target.arch, 10) if target.backend == "cuda" else (9, 4)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", "6.4" if target.backend == "hip" else None)
    monkeypatch.setattr(torch.cuda, "device_of", lambda tensor: torch.device("meta"))
    return request.param


def kept(launch: TritonLaunch, tuner: Autotuner) -> list[tuple[int, int]]:
    """Blocks of the configurations that the tuner of a launch tries on the current GPU."""
    tuner.nargs = launch.args
    constants = {name: launch.args[name] for name in ("BLOCK_K",)}
    configs = tuner.prune_configs(constants)
    return [(config.kwargs["BLOCK_M"], config.kwargs["BLOCK_N"]) for config in configs]


def a_map(channels: int, dtype: torch.dtype, size: tuple[int, int, int] = (2, 60, 60)) -> Tensor:
    shape = (size[0], channels, *size[1:])
    return torch.empty(shape, dtype=dtype, device="meta").to(memory_format=torch.channels_last)


LAUNCHES: dict[str, Callable[[torch.dtype], object]] = {
    "forward": lambda dtype: launchers.dilated_conv2d(
        a_map(128, dtype), a_map(128, dtype, (128, 3, 3)), None, 2, None, True
    ),
    "grad_weight": lambda dtype: launchers.dilated_conv2d_grad_weight(
        a_map(128, dtype), a_map(128, dtype), 2
    ),
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("name", LAUNCHES)
@pytest.mark.parametrize("chip", CHIPS, indirect=True)
def test_tuning_tries_what_fits(chip: str, name: str, dtype: torch.dtype, launches: Any) -> None:
    LAUNCHES[name](dtype)
    taken = launches.taken()
    target, available = CHIPS[chip]
    fits = {
        (launch.args["BLOCK_M"], launch.args["BLOCK_N"]): launch.shared_bytes(target) <= available
        for launch in taken
    }
    tiles = [tuple(launch.args[name] for name in ("BLOCK_M", "BLOCK_N")) for launch in taken]
    (tuner,) = {
        value
        for value in (vars(kernels) | vars(box_kernels)).values()
        if isinstance(value, Autotuner)
        and value.fn is taken[0].kernel
        and [(c.kwargs["BLOCK_M"], c.kwargs["BLOCK_N"]) for c in value.configs] == tiles
    }
    assert any(fits.values())
    assert kept(taken[0], tuner) == [tile for tile in tiles if fits[tile]]


@pytest.mark.parametrize("chip", ["RX 7900"], indirect=True)
def test_the_smallest_tile_remains(chip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "shared_bytes_of_a_block", lambda: 1)
    x = a_map(16, torch.float16)
    remaining = kernels._that_fit(kernels.conv_kernel.configs, {"p_x": x}, BLOCK_K=64)
    assert remaining == kernels.conv_kernel.configs[-1:]


def test_without_a_gpu_all_remain() -> None:
    configs = kernels.conv_kernel.configs
    assert kernels._that_fit(configs, {}, BLOCK_K=64) == configs


@pytest.mark.parametrize("chip", CHIPS, indirect=True)
def test_which_kernel_convolves(chip: str, launches: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensor descriptors where the device has them, for maps that their tiles fit."""

    def kernel(
        size: tuple[int, int], channels: int = 64, dtype: torch.dtype = torch.float16
    ) -> str:
        x = a_map(channels, dtype, (2, *size))
        launchers.dilated_conv2d(x, a_map(channels, dtype, (64, 3, 3)), None, 2, None, True)
        (name,) = {launch.kernel.__name__ for launch in launches.taken()}
        return name

    best = "_conv_box_kernel" if chip in ("H100", "RTX 5090") else "_conv_kernel"
    # 3840 and 15,360 pixels in tiles, for 3600 and 14,161.
    assert kernel((60, 60)) == kernel((119, 119)) == best
    # 4096 for 3249; rows of channels of 24 bytes.
    assert kernel((57, 57)) == kernel((60, 60), channels=12) == "_conv_kernel"
    assert kernel((60, 60), dtype=torch.float32) == best
    with torch.backends.cudnn.flags(allow_tf32=False):
        assert kernel((60, 60), dtype=torch.float32) == "_conv_kernel"


@pytest.mark.parametrize("chip", AMD, indirect=True)
def test_every_kernel_compiles_for_amd_and_fits(chip: str, launches: Any) -> None:
    target, available = CHIPS[chip]
    names = set()
    for call in network_calls():
        if call.dtype != torch.bfloat16 or not call.channels_last:
            continue
        call.triton()
        # The last is the smallest, of what is tuned.
        for launch in {launch.kernel: launch for launch in launches.taken()}.values():
            names.add(launch.kernel.__name__)
            assert launch.shared_bytes(target) <= available, launch.kernel.__name__
    assert {"_conv_kernel", "_grad_weight_kernel", "moments_kernel", "loss_bwd_kernel"} <= names


@pytest.mark.parametrize("chip", ["MI300"], indirect=True)
def test_amd_multiplies_exactly(chip: str, launches: Any) -> None:
    for dtype in (torch.float32, torch.float16):
        for launch in LAUNCHES.values():
            launch(dtype)
    assert {launch.args["PRECISION"] for launch in launches.taken()} == {"ieee"}

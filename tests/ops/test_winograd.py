"""What is particular to Winograd's algorithm on the CPU: the rule that chooses it, its memory."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from pspfast.ops import dilated_conv2d

OPS = torch.ops.pspfast


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("dilation", [1, 2, 5])
@pytest.mark.parametrize("size", [(16, 16), (8, 8), (20, 6)], ids=str)
@pytest.mark.parametrize("channels", [(16, 16), (15, 16), (40, 15), (33, 18)], ids=str)
def test_the_rule_is_what_the_op_goes_by(
    channels: tuple[int, int], size: tuple[int, int], dilation: int, dtype: torch.dtype
) -> None:
    x, weight = torch.randn(1, channels[0], *size), torch.randn(*channels[::-1], 3, 3)
    x, weight = x.to(dtype), weight.to(dtype)
    got = dilated_conv2d(x, weight, dilation=dilation)
    if OPS.winograd_is_faster(1, *channels, *size, dilation, dtype):
        transformed = OPS.winograd_weight(weight)
        expected = OPS.winograd_conv2d(x, transformed, channels[1], None, dilation, None, False)
    else:
        expected = F.conv2d(x, weight, padding=dilation, dilation=dilation)
    assert torch.equal(got, expected)


def test_the_rule_has_both_answers() -> None:
    def rule(channels: int = 16, size: int = 64, dilation: int = 1, dtype=torch.float32) -> bool:
        return OPS.winograd_is_faster(1, channels, channels, size, size, dilation, dtype)

    assert rule()
    assert rule(dtype=torch.bfloat16)
    assert not rule(dtype=torch.float64)
    assert not rule(channels=15)
    assert not rule(size=8)
    assert not rule(dilation=30)
    assert not OPS.winograd_is_faster(0, 64, 64, 64, 64, 1, torch.float32)


def test_errors_of_the_rule() -> None:
    with pytest.raises(ValueError, match=r"^winograd_is_faster: dilation: expected 1 to 8388608"):
        OPS.winograd_is_faster(1, 16, 16, 64, 64, 0, torch.float32)
    with pytest.raises(ValueError, match=r"^winograd_is_faster: dtype: expected float32.*got Int"):
        OPS.winograd_is_faster(1, 16, 16, 64, 64, 1, torch.int32)


@pytest.mark.parametrize(("out_channels", "channels"), [(1, 1), (16, 16), (17, 33), (512, 2048)])
def test_shape_of_a_transformed_weight(out_channels: int, channels: int) -> None:
    weight = torch.zeros(out_channels, channels, 3, 3)
    shape = OPS.winograd_weight_shape(out_channels, channels)
    assert shape == list(OPS.winograd_weight(weight).shape)


@pytest.mark.skipif(sys.platform != "linux", reason="limits a process's memory as Linux does")
def test_memory_that_could_not_be_had_is_not_believed_in() -> None:
    """The op keeps memory for its next call. If more is refused, a smaller call asks anew."""
    result = subprocess.run([sys.executable, "-c", _OUT_OF_MEMORY], capture_output=True, text=True)
    assert result.returncode == 0, f"exit code {result.returncode}: {result.stderr}"


_OUT_OF_MEMORY = """
import resource
import torch
import pspfast

torch.set_num_threads(1)
OPS, last = torch.ops.pspfast, torch.channels_last
# More channels than the op takes tile by tile.
transformed = OPS.winograd_weight(torch.randn(272, 272, 3, 3))
# 6 and 36 MB of transformed tensors beside results of 2 and 8 MB.
small, large = (
    torch.randn(1, 272, size, size).contiguous(memory_format=last) for size in (36, 88)
)
run = lambda x: OPS.winograd_conv2d(x, transformed, 272, None, 1, None, False)
expected = run(small)

limits = resource.getrlimit(resource.RLIMIT_AS)
with open("/proc/self/statm") as file:
    size = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (24 << 20), limits[1]))
try:
    run(large)
except (MemoryError, RuntimeError):
    pass
else:
    raise AssertionError("there was memory enough")
resource.setrlimit(resource.RLIMIT_AS, limits)
assert torch.equal(run(small), expected)
assert run(large).isfinite().all()
"""

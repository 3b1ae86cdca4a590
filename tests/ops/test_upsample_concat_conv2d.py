from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from op_tester import OpTester, channels_last, contiguous, with_reference
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pspfast.ops import upsample_concat_conv2d

Shape = tuple[int, ...]
# (mode, align_corners)
HALF_PIXELS, CORNERS = ("bilinear", False), ("bilinear", True)
NEAREST = ("nearest", False)


def oracle(
    maps: Sequence[Tensor],
    weight: Tensor,
    size: Sequence[int] | None = None,
    mode: str = "bilinear",
    align_corners: bool = False,
    bias: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    size = size or [max(m.shape[2] for m in maps), max(m.shape[3] for m in maps)]
    corners = {} if mode == "nearest" else {"align_corners": align_corners}
    # F.interpolate refuses an empty batch.
    upsampled = [
        F.interpolate(m, size, mode=mode, **corners)
        if m.numel()
        else m.sum((2, 3), True).expand(-1, -1, *size)
        for m in maps
    ]
    out = F.conv2d(torch.cat(upsampled, 1), weight, bias, padding=weight.shape[2] // 2)
    return out.relu() if relu else out


class TestUpsampleConcatConv2d(OpTester):
    float32_error = 1e-5  # Of dilated_conv2d.

    """Cases are (weight, bias, *maps), (size, mode, align_corners)."""

    cases: ClassVar = [
        ([(2, 3, 3, 3), (2,), (1, 2, 4, 6), (1, 1, 2, 3)], (None, *HALF_PIXELS)),
        ([(2, 3, 3, 3), (2,), (2, 1, 5, 3), (2, 2, 2, 2)], (None, *CORNERS)),
        ([(3, 2, 3, 3), (3,), (1, 2, 2, 3)], ((5, 4), *NEAREST)),
        ([(2, 4, 1, 1), (2,), (2, 2, 3, 5), (2, 2, 2, 2)], (None, *HALF_PIXELS)),
        # Winograd's algorithm, alone, over two maps and beside a mixed one.
        ([(18, 20, 3, 3), (18,), (1, 20, 16, 17)], (None, *HALF_PIXELS)),
        ([(16, 39, 3, 3), (16,), (1, 16, 20, 16), (1, 16, 20, 16), (1, 7, 5, 4)], (None, *CORNERS)),
        # Nothing of the full size; sizes that do not divide; more than one group of rows.
        ([(35, 29, 3, 3), (35,), (2, 17, 12, 17), (2, 12, 3, 5)], ((31, 45), *HALF_PIXELS)),
        ([(80, 9, 3, 3), (80,), (1, 5, 24, 33), (1, 4, 7, 9)], ((47, 66), *NEAREST)),
        ([(65, 35, 1, 1), (65,), (1, 18, 21, 13), (1, 17, 10, 6)], (None, *CORNERS)),
        # Smaller than all maps, and than some along one axis.
        ([(5, 7, 3, 3), (5,), (1, 4, 12, 12), (1, 3, 9, 3)], ((6, 7), *HALF_PIXELS)),
        ([(5, 7, 1, 1), (5,), (1, 4, 12, 12), (1, 3, 2, 30)], ((6, 14), *NEAREST)),
        ([(4, 5, 3, 3), (4,), (1, 3, 1, 1), (1, 2, 1, 1)], (None, *CORNERS)),
        ([(4, 5, 3, 3), (4,), (2, 3, 1, 9), (2, 2, 1, 4)], (None, *CORNERS)),
        ([(6, 4, 3, 3), (6,), (0, 3, 8, 8), (0, 1, 4, 4)], (None, *HALF_PIXELS)),
    ]
    overloads: ClassVar = []

    def op(self, weight: Tensor, bias: Tensor, *maps_and_args: Any) -> Tensor:
        *maps, size, mode, align_corners = maps_and_args
        return upsample_concat_conv2d(
            maps, weight, size, mode=mode, align_corners=align_corners, bias=bias
        )

    def reference(self, weight: Tensor, bias: Tensor, *maps_and_args: Any) -> Tensor:
        *maps, size, mode, align_corners = maps_and_args
        return oracle(maps, weight, size, mode, align_corners, bias)


@pytest.mark.parametrize("layout", [contiguous, channels_last])
@pytest.mark.parametrize("kernel_size", [1, 3])
def test_opcheck_of_the_ops_behind_it(kernel_size: int, layout: Callable[..., Tensor]) -> None:
    def make(*shape: int) -> Tensor:
        return layout(torch.randn(shape)).requires_grad_()

    maps = [make(2, 3, 7, 8), make(2, 2, 4, 3)]
    weight, bias = make(4, 5, kernel_size, kernel_size), torch.randn(4, requires_grad=True)
    ops = torch.ops.pspfast
    torch.library.opcheck(
        ops.upsample_concat_conv2d, (maps, weight, bias, [7, 8], False, False, True)
    )
    # Double backward goes through plain PyTorch: these have no gradient.
    grad, weight, *maps = (t.detach() for t in (make(2, 4, 7, 8), weight, *maps))
    torch.library.opcheck(
        ops.upsample_concat_conv2d_grad_map,
        (grad, weight, 3, 2, [4, 3], True, False, layout is channels_last),
    )
    torch.library.opcheck(
        ops.upsample_concat_conv2d_grad_weight,
        (grad, maps, kernel_size, False, True, layout is channels_last),
    )


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    size=st.tuples(*[st.integers(1, 40)] * 2),
    maps=st.lists(
        st.tuples(st.integers(1, 36), st.integers(1, 48), st.integers(1, 48)),
        min_size=1,
        max_size=4,
    ),
    out_channels=st.integers(1, 80),
    kernel_size=st.sampled_from([1, 3]),
    interpolation=st.sampled_from([HALF_PIXELS, CORNERS, NEAREST]),
    relu=st.booleans(),
)
def test_any_maps(
    size: tuple[int, int],
    maps: list[Shape],
    out_channels: int,
    kernel_size: int,
    interpolation: tuple[str, bool],
    relu: bool,
) -> None:
    mode, align_corners = interpolation
    # Of contiguous maps of float64 torch finds the nearest source by another rounding.
    sources = [channels_last(torch.randn(2, *shape, dtype=torch.float64)) for shape in maps]
    channels = sum(shape[0] for shape in maps)
    weight = torch.randn(out_channels, channels, kernel_size, kernel_size, dtype=torch.float64)
    inputs = [t.requires_grad_() for t in (*sources, weight)]
    ours = upsample_concat_conv2d(
        sources, weight, size, mode=mode, align_corners=align_corners, relu=relu
    )
    expected = oracle(sources, weight, size, mode, align_corners, relu=relu)
    grad = torch.randn_like(expected)
    for got, other in zip(
        (ours, *torch.autograd.grad(ours, inputs, grad)),
        (expected, *torch.autograd.grad(expected, inputs, grad)),
        strict=True,
    ):
        # torch takes a position's weights from its coordinate in float64.
        assert (got - other).norm() <= 1e-7 * other.norm() + 1e-12


@pytest.mark.parametrize("sources", [1, 2, 3, 7, 12, 31, 100])
def test_nearest_sources_are_those_of_torch(sources: int) -> None:
    """Rounding decides which source is nearest, where a position is between two. torch rounds in
    float32, but for contiguous maps of float64."""
    row = torch.arange(sources, dtype=torch.float32).expand(1, 2, 1, -1)
    weight = torch.eye(2).view(2, 2, 1, 1)
    for x in (row.contiguous(), row.contiguous(memory_format=torch.channels_last)):
        for size in range(sources, 3 * sources + 100):
            got = upsample_concat_conv2d([x], weight, (1, size), mode="nearest")
            assert torch.equal(got, F.interpolate(x, (1, size), mode="nearest")), size


@pytest.mark.parametrize("wanted", range(4))
def test_any_gradient_alone(wanted: int) -> None:
    inputs = [torch.randn(s) for s in [(6, 7, 3, 3), (6,), (2, 3, 9, 7), (2, 4, 4, 4)]]
    leaf = inputs[wanted].requires_grad_()
    weight, bias, *maps = inputs
    torch.testing.assert_close(
        torch.autograd.grad(upsample_concat_conv2d(maps, weight, bias=bias).square().sum(), leaf),
        torch.autograd.grad(oracle(maps, weight, bias=bias).square().sum(), leaf),
        rtol=1e-4,
        atol=1e-4,
    )


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_relu(kernel_size: int) -> None:
    shapes = [(3, 3, kernel_size, kernel_size), (3,), (1, 2, 4, 5), (1, 1, 2, 2)]
    inputs = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]

    def op(weight: Tensor, bias: Tensor, *maps: Tensor) -> Tensor:
        return upsample_concat_conv2d(maps, weight, bias=bias, relu=True)

    weight, bias, *maps = inputs
    torch.testing.assert_close(op(*inputs), oracle(maps, weight, bias=bias, relu=True))
    torch.autograd.gradcheck(op, inputs)
    torch.autograd.gradgradcheck(op, inputs)


def test_a_map_without_channels() -> None:
    maps = [torch.randn(1, c, s, s) for c, s in ((3, 6), (0, 4), (2, 3))]
    weight = torch.randn(4, 5, 3, 3)
    torch.testing.assert_close(
        upsample_concat_conv2d(maps, weight),
        upsample_concat_conv2d([maps[0], maps[2]], weight),
    )
    got = upsample_concat_conv2d(maps[1:2], weight[:, :0], (5, 5), bias=torch.ones(4))
    assert torch.equal(got, torch.ones(1, 4, 5, 5))


class LargestTensor(TorchDispatchMode):
    """The elements of the largest tensor that an operator returns; views of arguments count."""

    elements = 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


def test_no_interpolated_map_is_allocated() -> None:
    """Each would have 64 channels at 64², the result has 4."""
    maps = [
        torch.randn(1, 64, s, s).contiguous(memory_format=torch.channels_last).requires_grad_()
        for s in (8, 16, 24)
    ]
    weight = torch.randn(4, 192, 3, 3, requires_grad=True)
    saved: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    with (
        LargestTensor() as largest,
        torch.autograd.profiler.profile(profile_memory=True) as profile,
    ):
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = upsample_concat_conv2d(maps, weight, (64, 64))
        out.sum().backward()
    inputs = sum(t.numel() for t in (*maps, weight))
    assert sum(saved) <= inputs
    assert largest.elements <= 64 * 24 * 24 < 64 * 64 * 64 // 4
    allocated = max(event.cpu_memory_usage for event in profile.function_events)
    assert 0 < allocated <= 4 * 2 * inputs < 4 * 64 * 64 * 64


MAPS = [torch.zeros(1, 3, 8, 8), torch.zeros(1, 2, 4, 4)]
WEIGHT = torch.zeros(4, 5, 3, 3)
BAD_INPUTS = [
    ({"maps": []}, ValueError, "maps: expected at least one, got none"),
    ({"maps": [MAPS[0][0]]}, ValueError, r"maps: expected \[N, C, H, W\], got shape \[3, 8, 8\]"),
    ({"maps": [m.long() for m in MAPS]}, TypeError, "maps: expected float32"),
    (
        {"maps": [MAPS[0], MAPS[1].double()]},
        TypeError,
        "maps: expected torch.float32 as the first, got",
    ),
    (
        {"maps": [MAPS[0], MAPS[1].repeat(2, 1, 1, 1)]},
        ValueError,
        "maps: expected N = 1 as the first, got 2",
    ),
    ({"maps": [MAPS[0], MAPS[1][..., :0]]}, ValueError, "maps: expected H and W of 1 to"),
    ({"weight": WEIGHT[:, 1:]}, ValueError, r"weight: expected .* C = 5.* \[4, 4, 3, 3\]"),
    ({"weight": WEIGHT[..., :2]}, ValueError, "weight: expected .* k = 1 or 3"),
    ({"weight": torch.zeros(4, 5, 5, 5)}, ValueError, "weight: expected .* k = 1 or 3"),
    ({"weight": WEIGHT[0]}, ValueError, "weight: expected .* k = 1 or 3"),
    ({"weight": WEIGHT.double()}, TypeError, "weight: expected torch.float32 as maps, got"),
    ({"size": (8,)}, ValueError, r"size: expected \(H, W\) of 1 to 8388608, got \(8,\)"),
    ({"size": (0, 8)}, ValueError, r"size: expected \(H, W\) of 1 to 8388608, got \(0, 8\)"),
    ({"mode": "bicubic"}, ValueError, "mode: expected 'bilinear' or 'nearest', got 'bicubic'"),
    ({"mode": "nearest", "align_corners": True}, ValueError, "align_corners: expected False"),
    ({"weight": WEIGHT.to("meta")}, ValueError, "weight: expected device cpu as maps, got meta"),
    (
        {"maps": [MAPS[0], MAPS[1].to("meta")]},
        ValueError,
        "maps: expected device cpu as the first, got meta",
    ),
    ({"bias": torch.zeros(4, device="meta")}, ValueError, "bias: expected device cpu as x, got"),
    ({"bias": torch.zeros(3)}, ValueError, r"bias: expected \[O\] with O = 4, got shape \[3\]"),
    ({"bias": torch.zeros(4).half()}, TypeError, "bias: expected torch.float32 as x, got"),
]


@with_reference
@pytest.mark.parametrize("bad", BAD_INPUTS, ids=lambda bad: bad[2][:20])
def test_errors(implementation: str, bad: tuple[Any, ...]) -> None:
    changed, error, message = bad
    arguments = {"maps": MAPS, "weight": WEIGHT} | changed
    with pytest.raises(error, match=f"^upsample_concat_conv2d: {message}"):
        upsample_concat_conv2d(**arguments)

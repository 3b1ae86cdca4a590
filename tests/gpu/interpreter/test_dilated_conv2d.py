"""The Triton kernels of dilated_conv2d in the interpreter, against float64 PyTorch."""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from pspfast.kernels import dilated_conv2d as launchers
from pspfast.kernels.dilated_conv2d import (
    dilated_conv2d,
    dilated_conv2d_grad_input,
    dilated_conv2d_grad_weight,
)
from pspfast.kernels.jit import dilated_conv2d as kernels
from pspfast.kernels.jit.dilated_conv2d_boxes import conv_box_kernel

FLOAT, HALF, BFLOAT = torch.float32, torch.float16, torch.bfloat16
TILES = sorted({tile[:2] for tile in kernels.TILES + kernels.TF32_GRAD_WEIGHT_TILES})
TILES_AND_COLUMNS = list(zip(TILES, (16, 64, 32, 8, 16), strict=True))


@dataclass(frozen=True)
class Case:
    batch: int
    channels: int
    out_channels: int
    height: int
    width: int
    dilation: int = 1
    dtype: torch.dtype = FLOAT

    @property
    def in_shape(self) -> tuple[int, ...]:
        return self.batch, self.channels, self.height, self.width

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return self.out_channels, self.channels, 3, 3

    @property
    def out_shape(self) -> tuple[int, ...]:
        return self.batch, self.out_channels, self.height, self.width


# The interpreter takes its time: few programs, few rounds.
CASES = [
    Case(2, 3, 5, 5, 7),
    Case(2, 3, 5, 5, 7, 2),
    Case(2, 3, 5, 11, 9, 4),
    Case(1, 8, 24, 6, 10, 2, HALF),
    Case(1, 5, 3, 7, 6, 2, BFLOAT),
    Case(2, 16, 16, 5, 5, 4, BFLOAT),
    # More channels than a block, 64, and than a sum takes at a time, 64 or 32.
    Case(1, 70, 67, 3, 5, 2),
    Case(1, 70, 67, 3, 5, 2, HALF),
    Case(1, 67, 70, 3, 5, 1, BFLOAT),
    # The channels that fill a block.
    Case(1, 32, 64, 4, 4, 2),
    Case(1, 64, 32, 4, 4, 1, HALF),
    # More pixels than a block, several images in it, rows longer than it.
    Case(3, 2, 3, 5, 9, 2),
    Case(7, 2, 2, 1, 3),
    Case(1, 2, 2, 2, 130, 3),
    # A dilation larger than the map, and a side as large as it.
    Case(2, 3, 2, 3, 4, 5),
    Case(2, 3, 2, 2, 9, 4),
    Case(2, 3, 2, 4, 2, 4),
    Case(2, 3, 2, 1, 1),
    Case(70, 2, 2, 1, 1),
    Case(2, 1, 1, 1, 5, 2),
    Case(2, 1, 1, 5, 1, 2),
]


# The pixels of these fit no tile; rows of their channels are multiples of 16 bytes.
BOX_CASES = [
    Case(2, 16, 24, 5, 7, 2, HALF),
    Case(1, 72, 72, 3, 17, 4, BFLOAT),
    Case(2, 12, 4, 3, 34, 1),
    # A dilation larger than the map, maps of one row, column and pixel.
    Case(2, 8, 16, 3, 4, 5, HALF),
    Case(1, 4, 8, 1, 70, 3),
    Case(1, 4, 8, 70, 1, 3),
    Case(3, 8, 8, 1, 1, 1, BFLOAT),
]


def random(*shape: int, dtype: torch.dtype = FLOAT) -> Tensor:
    return torch.randn(shape).to(dtype).to(memory_format=torch.channels_last)


def assert_exact_to_rounding(got: Tensor, expected: Tensor, terms: int) -> None:
    """float32 sums of so many products of random numbers, rounded once to the dtype of the result,
    channels_last."""
    # The interpreter truncates to bfloat16.
    half_ulps = 2 if got.dtype == BFLOAT else 1
    rounding = 0.51 * half_ulps * torch.finfo(got.dtype).eps
    atol = 2e-6 * terms**0.5
    torch.testing.assert_close(got.double(), expected.detach(), rtol=max(rounding, 1e-6), atol=atol)
    assert got.movedim(1, -1).is_contiguous()


def assert_right(
    x: Tensor, weight: Tensor, grad: Tensor, dilation: int, bias: Tensor, residual: Tensor
) -> None:
    """All three launchers, and all that a forward launch may add."""
    exact_x, exact_weight = x.double().requires_grad_(), weight.double().requires_grad_()
    expected = F.conv2d(exact_x, exact_weight, padding=dilation, dilation=dilation)
    biased = expected + bias.double().view(-1, 1, 1)
    terms = 9 * x.shape[1]
    got = dilated_conv2d(x, weight, None, dilation, None, False)
    assert got.dtype == x.dtype
    assert_exact_to_rounding(got, expected, terms)
    got = dilated_conv2d(x, weight, bias, dilation, residual, True)
    assert_exact_to_rounding(got, (biased + residual.double()).relu(), terms)

    expected.backward(grad.double())
    got = dilated_conv2d_grad_input(grad, weight, dilation)
    assert got.dtype == x.dtype
    assert_exact_to_rounding(got, exact_x.grad, 9 * weight.shape[0])
    got = dilated_conv2d_grad_weight(grad, x, dilation)
    assert got.dtype == x.dtype
    assert_exact_to_rounding(got, exact_weight.grad, grad.numel() // grad.shape[1])


def assert_case(case: Case) -> None:
    x, weight, grad, residual = (
        random(*shape, dtype=case.dtype)
        for shape in (case.in_shape, case.weight_shape, case.out_shape, case.out_shape)
    )
    bias = torch.randn(case.out_channels).to(case.dtype)
    assert_right(x, weight, grad, case.dilation, bias, residual)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward_and_backward(case: Case) -> None:
    assert_case(case)


@pytest.mark.parametrize("tile", TILES, ids=str)
def test_tiles(tile: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    config = triton.Config({"BLOCK_M": tile[0], "BLOCK_N": tile[1]})
    for kernel in (kernels.conv_kernel, kernels.grad_weight_tf32_kernel):
        monkeypatch.setattr(kernel, "configs", [config])
    assert_case(Case(1, 65, 130, 7, 11, 2))


@pytest.fixture
def boxes(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """A GPU with tensor descriptors, whose kernel all convolutions take that can; the launches."""
    launched: list[object] = []
    launch = launchers._convolve_boxes

    def noted(*arguments: object) -> None:
        launched.append(arguments)
        launch(*arguments)

    monkeypatch.setattr(launchers, "_convolve_boxes", noted)
    monkeypatch.setattr(launchers, "boxes_by_rule", launchers.takes_boxes)
    monkeypatch.setattr(launchers, "has_tensor_descriptors", lambda x: True)
    # The interpreter has no TF32.
    monkeypatch.setattr(launchers, "_ieee", lambda x: False)
    return launched


@pytest.mark.parametrize("case", BOX_CASES, ids=str)
def test_boxes(case: Case, boxes: list[object]) -> None:
    assert_case(case)
    assert len(boxes) == 3


@pytest.mark.parametrize(("tile", "columns"), TILES_AND_COLUMNS, ids=str)
def test_tiles_of_boxes(
    tile: tuple[int, int], columns: int, boxes: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"BLOCK_M": tile[0], "BLOCK_N": tile[1]}
    config = triton.Config(values, pre_hook=conv_box_kernel.configs[0].pre_hook)
    monkeypatch.setattr(conv_box_kernel, "configs", [config])
    monkeypatch.setattr(launchers, "_tile_columns", lambda height, width: columns)
    assert_case(Case(1, 8, 72, 9, 17, 2, HALF))
    assert len(boxes) == 3


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_boxes_reach_no_channel_of_another_tap(value: float, boxes: list[object]) -> None:
    """Behind the last channel of a filter's tap is the first of the next one."""
    x, weight = random(1, 8, 3, 4, dtype=HALF), random(8, 8, 3, 3, dtype=HALF).abs()
    x[0, 3, 2, 3] = weight[5, 0, 1, 1] = value
    expected = F.conv2d(x.float(), weight.float(), padding=2, dilation=2)
    got = dilated_conv2d(x, weight, None, 2, None, False)
    assert torch.equal(got.isfinite(), expected.isfinite())
    assert len(boxes) == 1


def test_what_has_no_boxes(boxes: list[object]) -> None:
    """Rows or addresses that are no multiples of 16 bytes."""
    assert_case(Case(1, 4, 8, 3, 4, 1, HALF))
    assert_case(Case(1, 8, 12, 3, 4, 1, HALF))
    assert not boxes
    weight = random(8, 8, 3, 3, dtype=HALF)
    shifted = torch.randn(97).half()[1:].view(1, 3, 4, 8).movedim(-1, 1)
    expected = F.conv2d(shifted.double(), weight.double(), padding=1)
    got = dilated_conv2d(shifted, weight, None, 1, None, False)
    assert_exact_to_rounding(got, expected, 72)
    assert not boxes


@pytest.mark.parametrize("dtype", [FLOAT, HALF, BFLOAT], ids=str)
def test_weight_gradient_of_splits(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launchers, "_LEAST_PIXELS", 70)
    case = Case(3, 3, 5, 9, 11, 2, dtype)
    x, grad = random(*case.in_shape, dtype=dtype), random(*case.out_shape, dtype=dtype)
    expected = torch.nn.grad.conv2d_weight(
        x.double(), case.weight_shape, grad.double(), padding=2, dilation=2
    )
    got = dilated_conv2d_grad_weight(grad, x, 2)
    assert got.dtype == dtype
    # Splits are added, and rounded, by torch.
    assert_exact_to_rounding(got, expected, 3 * 9 * 11)


@pytest.mark.parametrize("with_bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("with_residual", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("relu", [False, True], ids=["", "relu"])
def test_what_is_added(with_bias: bool, with_residual: bool, relu: bool) -> None:
    case = Case(2, 3, 4, 5, 6, 2, HALF)
    x, weight = random(*case.in_shape, dtype=HALF), random(*case.weight_shape, dtype=HALF)
    bias = torch.randn(4, dtype=HALF) if with_bias else None
    residual = random(*case.out_shape, dtype=HALF) if with_residual else None
    expected = F.conv2d(x.double(), weight.double(), padding=2, dilation=2)
    if bias is not None:
        expected += bias.double().view(-1, 1, 1)
    if residual is not None:
        expected += residual
    expected = expected.relu() if relu else expected
    assert_exact_to_rounding(dilated_conv2d(x, weight, bias, 2, residual, relu), expected, 27)


def test_other_strides() -> None:
    x = torch.randn(2, 4, 6, 10)[:, 1:, :, ::2]
    weight = torch.randn(3, 5, 3, 3).transpose(0, 1)
    grad = torch.randn(5).view(-1, 1, 1).expand(2, 5, 6, 5)
    residual = torch.randn(5, 2, 5, 6).permute(1, 0, 3, 2)
    bias = torch.randn(10)[::2]
    assert not any(t.is_contiguous() for t in (x, weight, grad, residual, bias))
    assert_right(x, weight, grad, 2, bias, residual)


def test_contiguous_maps() -> None:
    x, weight, grad = torch.randn(2, 3, 6, 5), torch.randn(4, 3, 3, 3), torch.randn(2, 4, 6, 5)
    assert_right(x, weight, grad, 2, torch.randn(4), torch.randn(2, 4, 6, 5))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_stays_with_the_pixels_that_read_it(value: float) -> None:
    """What is beside the map is not read, rather than multiplied by zero."""
    x, weight, grad = random(2, 3, 7, 8), random(4, 3, 3, 3).abs(), random(2, 4, 7, 8)
    x[0, 1, 6, 7] = x[1, 2, 0, 0] = value
    expected = F.conv2d(x, weight, padding=2, dilation=2).relu()
    got = dilated_conv2d(x, weight, None, 2, None, True)
    assert torch.equal(got.isfinite(), expected.isfinite())
    assert torch.equal(got.isnan(), expected.isnan())

    grad[0, 1, 6, 7] = grad[1, 2, 0, 0] = value
    expected = torch.nn.grad.conv2d_input(x.shape, weight, grad, padding=2, dilation=2)
    assert torch.equal(dilated_conv2d_grad_input(grad, weight, 2).isfinite(), expected.isfinite())


@pytest.mark.parametrize("dim", [2, 3], ids=["row", "column"])
@pytest.mark.parametrize("end", [0, -1], ids=["first", "last"])
def test_weight_gradient_reads_nothing_beside_the_map(end: int, dim: int) -> None:
    """The farthest tap on the other side never reaches an end of the map."""
    x, grad = random(2, 2, 3, 4), random(2, 3, 3, 4)
    x.select(dim, end).fill_(torch.nan)
    finite = torch.zeros(3, 2, 3, 3, dtype=torch.bool)
    finite.select(dim, -1 - end).fill_(True)
    assert torch.equal(dilated_conv2d_grad_weight(grad, x, 1).isfinite(), finite)


@pytest.mark.parametrize(
    ("batch", "channels", "out_channels"), [(0, 2, 3), (2, 0, 3), (2, 3, 0), (0, 0, 0)]
)
def test_nothing_to_convolve(batch: int, channels: int, out_channels: int) -> None:
    case = Case(batch, channels, out_channels, 3, 4)
    x, weight, grad = random(*case.in_shape), random(*case.weight_shape), random(*case.out_shape)
    bias = torch.randn(out_channels)
    got = dilated_conv2d(x, weight, bias, 2, grad, False)
    assert got.shape == case.out_shape
    if channels == 0:
        assert torch.equal(got, grad + bias.view(-1, 1, 1))
    got = dilated_conv2d_grad_input(grad, weight, 2)
    assert got.shape == case.in_shape
    assert got.eq(0.0).all()
    got = dilated_conv2d_grad_weight(grad, x, 2)
    assert got.shape == case.weight_shape
    assert got.eq(0.0).all()

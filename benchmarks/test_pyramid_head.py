"""The head over the pyramid against semseg's, at the sizes of PSPNet50: PPM and 3x3 convolution."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pspfast.models.pyramid import PyramidConv2d, PyramidPriors
from pspfast.ops import pyramid_concat

BINS = (1, 2, 3, 6)
CHANNELS, HEAD_CHANNELS = 2048, 512
REDUCTION = CHANNELS // len(BINS)
# Features of images of 473, 473 twice, 713 (Cityscapes), 512x1024 and 769 pixels.
SHAPES = [(1, 60, 60), (2, 60, 60), (1, 90, 90), (1, 64, 128), (1, 97, 97)]
# A round takes seconds.
ROUNDS = 7


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ppm = PyramidPriors(CHANNELS, REDUCTION, BINS)
        self.conv = PyramidConv2d(2 * CHANNELS, HEAD_CHANNELS, 3, BINS)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x, self.ppm(x))


def semseg(head: Head, x: Tensor) -> Tensor:
    maps = [x]
    for b, (_, conv, bn, relu) in zip(BINS, head.ppm.features, strict=True):
        prior = relu(bn(conv(F.adaptive_avg_pool2d(x, b))))
        maps.append(F.interpolate(prior, x.shape[2:], mode="bilinear", align_corners=True))
    return head.conv(torch.cat(maps, 1))


def concat_level_by_level(x: Tensor, priors: Tensor) -> Tensor:
    maps = [x]
    for b, level in zip(BINS, priors.split([b * b for b in BINS], 2), strict=True):
        level = level.unflatten(2, (b, b))
        maps.append(F.interpolate(level, x.shape[2:], mode="bilinear", align_corners=True))
    return torch.cat(maps, 1)


def make_head(device: torch.device, dtype: torch.dtype = torch.float32) -> Head:
    torch.manual_seed(0)
    return Head().to(device, dtype)


def make_map(shape: tuple[int, int, int], device, dtype=torch.float32) -> Tensor:
    batch, height, width = shape
    return torch.randn(batch, CHANNELS, height, width, device=device, dtype=dtype)


def assert_exact(ours: Tensor, eager: Tensor, exact: Tensor) -> None:
    """Within twice eager's error, of which TF32 makes more, and that of Winograd's algorithm."""
    error, allowed = ((out.double() - exact).norm() for out in (ours, eager))
    bound = 2 * allowed + 1e-5 * exact.norm()
    assert error <= bound, f"error {error:.3g}, eager's {allowed:.3g}"


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [*((shape, torch.float32) for shape in SHAPES), (SHAPES[0], torch.bfloat16)],
    ids=str,
)
def test_forward(compare, shape, dtype, device) -> None:
    head, x = make_head(device, dtype).eval(), make_map(shape, device, dtype)
    peers = {"eager": lambda: semseg(head, x)}
    if shape == SHAPES[0]:
        compiled = torch.compile(semseg)
        peers["torch.compile"] = lambda: compiled(head, x)
    with torch.inference_mode():
        if shape == SHAPES[0]:
            exact = semseg(make_head(device, dtype).eval().double(), x.double())
            assert_exact(head(x), semseg(head, x), exact)
        compare(lambda: head(x), peers, ROUNDS)


@pytest.mark.parametrize("shape", SHAPES[:2], ids=str)
def test_forward_backward(compare, shape, device) -> None:
    head, x = make_head(device), make_map(shape, device).requires_grad_()
    leaves = [x, *head.parameters()]
    grad = torch.randn(shape[0], HEAD_CHANNELS, *shape[1:], device=device)
    if shape[0] == 1:
        # A single value for each channel of the 1x1 level has no variance.
        head.ppm.features[0][2].eval()

    def step(function) -> tuple[Tensor, ...]:
        return torch.autograd.grad(function(), leaves, grad)

    def ours() -> tuple[Tensor, ...]:
        return step(lambda: head(x))

    def eager() -> tuple[Tensor, ...]:
        return step(lambda: semseg(head, x))

    # On a GPU products are in TF32, of 11 bits.
    tolerance = 1e-4 if device.type == "cpu" else 1e-2
    for got, expected in zip(ours(), eager(), strict=True):
        assert (got - expected).norm() <= tolerance * expected.norm()
    compare(ours, {"eager": eager}, ROUNDS)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_all_but_the_convolution(compare, memory_format, device) -> None:
    """Pool, level convolutions, mixing and interpolation, against the convolution over the map."""
    if device.type != "cpu":
        pytest.skip("pyramid_mix is an op of the CPU: elsewhere it is a product of matrices")
    head = make_head(device).eval().to(memory_format=memory_format)
    x = make_map(SHAPES[0], device).contiguous(memory_format=memory_format)
    weight = head.conv.weight[:, :CHANNELS].contiguous(memory_format=memory_format)
    base = F.conv2d(x, weight, padding=1)

    def the_rest() -> Tensor:
        ops = torch.ops.pspfast
        mixed, _ = ops.pyramid_mix(head.ppm(x), head.conv.weight, BINS, False)
        return ops.pyramid_upsample_add(base, mixed, None, BINS, True, False)

    with torch.inference_mode():
        torch.testing.assert_close(the_rest(), head(x))
        compare(the_rest, {"conv2d": lambda: F.conv2d(x, weight, padding=1)}, ROUNDS)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_concat_forward(compare, memory_format, device) -> None:
    x = make_map(SHAPES[0], device).contiguous(memory_format=memory_format)
    priors = torch.randn(1, REDUCTION, 50, device=device)
    compiled = torch.compile(concat_level_by_level)
    with torch.inference_mode():
        torch.testing.assert_close(
            pyramid_concat(x, priors, BINS), concat_level_by_level(x, priors)
        )
        compare(
            lambda: pyramid_concat(x, priors, BINS),
            {
                "eager": lambda: concat_level_by_level(x, priors),
                "torch.compile": lambda: compiled(x, priors),
            },
        )


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_concat_forward_backward(compare, memory_format, device) -> None:
    x = make_map(SHAPES[0], device).contiguous(memory_format=memory_format).requires_grad_()
    priors = torch.randn(1, REDUCTION, 50, device=device, requires_grad=True)
    compiled = torch.compile(concat_level_by_level)
    grad = torch.randn_like(concat_level_by_level(x, priors))

    def step(function) -> tuple[Tensor, ...]:
        return torch.autograd.grad(function(x, priors), (x, priors), grad)

    def ours() -> tuple[Tensor, ...]:
        return step(lambda x, priors: pyramid_concat(x, priors, BINS))

    for got, expected in zip(ours(), step(concat_level_by_level), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-3)
    compare(
        ours,
        {
            "eager": lambda: step(concat_level_by_level),
            "torch.compile": lambda: step(compiled),
        },
    )

"""The network of standard operators, and its algebra, against torch's own operators."""

from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from randomised import randomised, relative_difference
from torch import Tensor

import pspfast
from pspfast import PSPNet, ops
from pspfast.deployment import algebra
from pspfast.deployment.network import StandardNetwork
from pspfast.ops.pyramid_pool import pyramid_pool_reference
from pspfast.published.preprocessing import Preprocessing

TINY = {"layers": 18, "stem": "7x7", "head_channels": 8, "aux_channels": 8, "classes": 4}
DYNAMIC = torch.export.Dim.DYNAMIC


@pytest.mark.parametrize("bins", [(1, 2, 3, 6), (5,), (4, 7)])
def test_pooling(bins: tuple[int, ...]) -> None:
    for height, width in product((1, 2, 5, 6, 13, 60, 64), (1, 3, 7, 65)):
        x = torch.randn(2, 3, height, width, dtype=torch.float64)
        torch.testing.assert_close(algebra.pyramid_pool(x, bins), pyramid_pool_reference(x, bins))


@pytest.mark.parametrize("align_corners", [True, False])
def test_interpolation(align_corners: bool) -> None:
    for source, to in product((1, 2, 5, 60), (1, 2, 7, 60, 473)):
        x = torch.randn(1, 2, source, source)
        expected = F.interpolate(x, (to, to), mode="bilinear", align_corners=align_corners)
        got = algebra.upsample(x, (to, to), align_corners)
        torch.testing.assert_close(got, expected, rtol=0, atol=5e-5)
        cropped = algebra.upsample(x, (to, to), align_corners, crop=(1, to))
        torch.testing.assert_close(cropped, expected[:, :, :1], rtol=0, atol=5e-5)


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_convolution_over_maps(kernel: int, mode: str) -> None:
    maps = [torch.randn(2, c, *s) for c, s in ((3, (12, 17)), (2, (6, 9)), (4, (12, 5)))]
    weight, bias = torch.randn(5, 9, kernel, kernel), torch.randn(5)
    for align_corners in (True, False) if mode == "bilinear" else (False,):
        option = align_corners if mode == "bilinear" else None
        sizes = [F.interpolate(m, (12, 17), mode=mode, align_corners=option) for m in maps]
        expected = F.conv2d(torch.cat(sizes, 1), weight, bias, padding=kernel // 2).relu()
        got = algebra.upsample_concat_conv2d(
            maps, weight, bias, (12, 17), align_corners, mode == "nearest", True
        )
        assert relative_difference(got, expected) < 2e-6


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"align_corners": False},
        {"use_ppm": False},
        {"zoom_factor": 1},
        {"zoom_factor": 4},
        {"layers": 50, "dilation": "contracted", "ppm_channels": 24},
        {"output_stride": 32, "block_dilation": "first"},
        {"in_channels": 5, "aux": False, "stem": "deep_narrow"},
        {"bins": (1, 4)},
    ],
    ids=str,
)
@torch.no_grad()
def test_equals_the_model(options: dict[str, Any]) -> None:
    model = randomised(PSPNet(**{**TINY, **options}))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    network = StandardNetwork(model, "logits", preprocess=False)
    assert model.training
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    model.eval()
    for size in ((97, 65), (70, 83), (8, 9), (1, 1)):
        images = torch.randn(2, model.in_channels, *size)
        expected = model(images)
        if model.zoom_factor != 8:
            # Those of predict: upsampled from the resolution of the zoom to the padded image.
            padded = F.pad(images, (0, -(size[1] - 1) % 8, 0, -(size[0] - 1) % 8))
            expected = F.interpolate(
                model(padded), padded.shape[2:], mode="bilinear", align_corners=True
            )[:, :, : size[0], : size[1]]
        assert relative_difference(network(images), expected) < 1e-5


@torch.no_grad()
def test_preprocessing_within() -> None:
    model = randomised(PSPNet(**TINY)).eval()
    model.preprocessing = Preprocessing((0.1, 0.2, 0.3), (0.5, 0.25, 0.2), "bgr")
    images = torch.randint(0, 256, (1, 3, 49, 41), dtype=torch.uint8)
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.25, 0.2])
    prepared = (images.flip(1) / 255 - mean[:, None, None]) / std[:, None, None]
    expected = model(prepared)
    got = StandardNetwork(model, "logits", preprocess=True)(images)
    assert relative_difference(got, expected) < 1e-5
    shares = StandardNetwork(model, "probabilities", preprocess=True)(images)
    torch.testing.assert_close(shares, expected.softmax(1), rtol=1e-4, atol=1e-6)


def targets(program: torch.export.ExportedProgram) -> set[str]:
    return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}


class PyramidHead(torch.nn.Module):
    """All that a PSPNet has of this project's operators in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        model: Any = randomised(PSPNet(**TINY, align_corners=False))
        self.block, self.ppm, self.cls = model.layer4[1], model.ppm, model.cls

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(x)
        return self.cls(x, self.ppm(x))


@torch.no_grad()
def test_programs_of_the_kernels_decompose() -> None:
    head = PyramidHead().eval()
    shapes = ({0: DYNAMIC, 2: DYNAMIC, 3: DYNAMIC},)
    program = torch.export.export(head, (torch.randn(2, 512, 9, 12),), dynamic_shapes=shapes)
    assert len({target for target in targets(program) if "pspfast" in target}) == 4
    lowered = program.run_decompositions(pspfast.decompositions())
    assert not [target for target in targets(lowered) if "pspfast" in target]
    for size in ((9, 12), (13, 7)):
        x = torch.randn(3, 512, *size)
        assert relative_difference(lowered.module()(x), head(x)) < 1e-5


class Others(torch.nn.Module):
    """Operators that PSPNet's evaluation has not."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(5, 8, 3, 3))

    def forward(self, x: Tensor, small: Tensor, priors: Tensor) -> tuple[Tensor, ...]:
        fused = ops.upsample_concat_conv2d([x, small], self.weight, relu=True)
        size = (2 * x.shape[2] + 1, 50)
        return (
            fused,
            ops.pyramid_concat(x, priors, (1, 2)),
            ops.upsample_argmax(fused, size, align_corners=False),
            ops.upsample_softmax(fused, size, align_corners=True, flip=True),
        )


@torch.no_grad()
def test_all_operators_of_evaluation_decompose() -> None:
    network = Others().eval()
    inputs = torch.randn(2, 5, 20, 24), torch.randn(2, 3, 9, 12), torch.randn(2, 4, 5)
    program = torch.export.export(network, inputs)
    assert len([target for target in targets(program) if "pspfast" in target]) == 4
    lowered = program.run_decompositions(pspfast.decompositions())
    assert not [target for target in targets(lowered) if "pspfast" in target]
    for got, expected in zip(lowered.module()(*inputs), network(*inputs), strict=True):
        assert got.dtype == expected.dtype
        if got.is_floating_point():
            assert relative_difference(got, expected) < 1e-5
        else:
            assert (got == expected).double().mean() > 0.999


def test_torchscript_is_refused() -> None:
    model = PSPNet(**TINY).eval()
    with pytest.raises(RuntimeError, match=r"torch\.jit\.script: .* use pspfast\.export"):
        torch.jit.script(model)
    with pytest.raises(RuntimeError, match=r"torch\.jit\.trace: .* use pspfast\.export"):
        torch.jit.trace(model, torch.randn(1, 3, 33, 33))

"""What users of torch expect of any operator: transforms, meta tensors, FLOPs, versions."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

import pspfast
from pspfast import PSPNet, ops

BINS = (1, 2, 3, 6)
WEIGHT, PRIORS = torch.randn(8, 4, 3, 3), torch.randn(1, 1, 50)
LEVELS_WEIGHT = torch.randn(5, 8, 3, 3)
TARGET = torch.randint(4, (1, 17, 17))

# From a map [1, 4, 9, 9].
OPS: dict[str, Callable[[Tensor], Tensor]] = {
    "pyramid_pool": lambda x: ops.pyramid_pool(x, BINS),
    "pyramid_concat": lambda x: ops.pyramid_concat(x, PRIORS.to(x), BINS),
    "pyramid_conv2d": lambda x: ops.pyramid_conv2d(x, PRIORS.to(x), LEVELS_WEIGHT.to(x), BINS),
    "dilated_conv2d": lambda x: ops.dilated_conv2d(x, WEIGHT.to(x), relu=True),
    "upsample_concat_conv2d": lambda x: ops.upsample_concat_conv2d(
        [x, x[..., ::2, ::2]], LEVELS_WEIGHT.to(x), relu=True
    ),
    "upsample_softmax": lambda x: ops.upsample_softmax(x, (17, 17)),
    "upsample_cross_entropy": lambda x: ops.upsample_cross_entropy(x, TARGET.to(x.device)),
}
every_op = pytest.mark.parametrize("op", OPS.values(), ids=list(OPS))


@pytest.fixture
def x() -> Tensor:
    return torch.randn(1, 4, 9, 9)


def in_plain_pytorch(function: Callable[[], Tensor]) -> Tensor:
    with pspfast.backend("reference"):
        return function()


@every_op
def test_forward_derivatives(op: Callable[[Tensor], Tensor], x: Tensor) -> None:
    tangent = torch.randn_like(x)

    def dual() -> Tensor:
        with forward_ad.dual_level():
            out = op(forward_ad.make_dual(x, tangent))
            return forward_ad.unpack_dual(out).tangent.clone()

    for derivative in (dual, lambda: torch.func.jvp(op, (x,), (tangent,))[1]):
        got = derivative()
        assert got.abs().sum() > 0
        torch.testing.assert_close(got, in_plain_pytorch(derivative))


@every_op
def test_transforms(op: Callable[[Tensor], Tensor], x: Tensor) -> None:
    for transform in (
        lambda: torch.func.grad(lambda t: op(t).square().sum())(x),
        lambda: torch.func.vmap(op)(torch.stack([x, 2 * x])),
        lambda: torch.func.jacrev(lambda t: op(t).sum())(x),
    ):
        torch.testing.assert_close(transform(), in_plain_pytorch(transform))


@every_op
def test_kernels_serve_outside_of_transforms(
    op: Callable[[Tensor], Tensor], x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[str] = []
    select = pspfast.backends.select

    def watched(*args: object, **kwargs: object) -> str:
        chosen.append(select(*args, **kwargs))
        return chosen[-1]

    monkeypatch.setattr(pspfast.backends, "select", watched)
    op(x)
    assert chosen and set(chosen) == {"cpu"}
    torch.func.vmap(op)(x[None])
    assert "reference" in chosen


@every_op
def test_meta_tensors_have_the_shape(op: Callable[[Tensor], Tensor], x: Tensor) -> None:
    out = op(x.to("meta"))
    assert (out.device.type, out.shape, out.dtype) == ("meta", op(x).shape, torch.float32)


def test_network_on_meta() -> None:
    with torch.device("meta"):
        model = PSPNet(18, classes=3, stem="7x7").eval()
        assert model(torch.empty(1, 3, 65, 65)).shape == (1, 3, 65, 65)


def test_transforms_of_the_network() -> None:
    """torch.func knows no hooks on saved tensors, nor memory formats within vmap."""
    model = PSPNet(18, classes=3, stem="7x7", head_channels=8, aux_channels=8, dropout=0.0).eval()
    x = torch.randn(1, 3, 33, 33)

    def loss(image: Tensor) -> Tensor:
        return model(image).square().sum()

    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(loss)(x), expected, rtol=1e-3, atol=1e-5)
    images = torch.cat([x, 2 * x])
    with torch.no_grad():
        each = torch.func.vmap(lambda image: model(image[None])[0])(images)
        torch.testing.assert_close(each, model(images), rtol=1e-4, atol=1e-5)
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    model.train()
    target = torch.randint(3, (2, 33, 33))

    def training_loss(parameters: dict[str, Tensor]) -> Tensor:
        states = parameters, {name: buffer.clone() for name, buffer in buffers.items()}
        return torch.func.functional_call(model, states, (images, target))[1]

    gradients = torch.func.grad(training_loss)(parameters)
    training_loss(parameters).backward()
    name = "layer4.1.conv2.weight"
    torch.testing.assert_close(gradients[name], parameters[name].grad, rtol=1e-3, atol=1e-4)


META = {"device": "meta"}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: ops.dilated_conv2d(x, WEIGHT.to("meta")), "dilated_conv2d: weight"),
        (
            lambda x: ops.dilated_conv2d(x, WEIGHT, torch.randn(8, **META)),
            "dilated_conv2d: bias",
        ),
        (
            lambda x: ops.dilated_conv2d(x, WEIGHT, residual=torch.randn(1, 8, 9, 9, **META)),
            "dilated_conv2d: residual",
        ),
        (
            lambda x: ops.batch_norm_relu(x, None, None, torch.ones(4, **META), torch.ones(4)),
            "batch_norm_relu: weight",
        ),
        (lambda x: ops.pyramid_concat(x, PRIORS.to("meta"), BINS), "pyramid_concat: priors"),
        (
            lambda x: ops.pyramid_conv2d(x, PRIORS, LEVELS_WEIGHT.to("meta"), BINS),
            "pyramid_conv2d: weight",
        ),
        (
            lambda x: ops.upsample_cross_entropy(x, TARGET.to("meta")),
            "upsample_cross_entropy: target",
        ),
        (
            lambda x: ops.upsample_cross_entropy(x, TARGET, weight=torch.ones(4, **META)),
            "upsample_cross_entropy: weight",
        ),
        (
            lambda x: ops.upsample_softmax(x, (9, 9), out=torch.zeros(1, 4, 9, 9, **META)),
            "upsample_softmax: out",
        ),
    ],
)
def test_meta_among_others_is_refused(
    call: Callable[[Tensor], object], message: str, x: Tensor
) -> None:
    with pytest.raises(ValueError, match=f"^{message}: expected device cpu as .*, got meta"):
        call(x)


def test_softmax_out_and_autograd(x: Tensor) -> None:
    root = torch.ones(1, 4, 17, 17, requires_grad=True)
    kept = root.exp()
    zeros = torch.zeros(1, 4, 17, 17)
    expanded = torch.zeros(1, 4, 1, 1).expand(1, 4, 17, 17)
    for out, error, message in (
        (kept, RuntimeError, "requires no gradient"),
        (root, RuntimeError, "requires no gradient"),
        (expanded, ValueError, "memory of its own for each element"),
        (zeros.as_strided(zeros.shape, (1, 1, 1, 1)), ValueError, "memory of its own for each"),
    ):
        before = out.detach().clone()
        with pytest.raises(error, match=f"^upsample_softmax: out: .*{message}"):
            ops.upsample_softmax(x, (17, 17), out=out)
        assert torch.equal(out, before)
    # What backward keeps of it has changed since.
    product = (root * zeros).sum()
    ops.upsample_softmax(x, (17, 17), out=zeros)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_flops_are_those_of_the_direct_network() -> None:
    """But for the head, whose algebra saves up to a half of its convolution."""
    model, images = PSPNet(18, classes=5, stem="7x7").eval(), torch.randn(1, 3, 129, 129)

    def flops(function: Callable[[], object]) -> int:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            function()
        return counter.get_total_flops()

    x, weight = torch.randn(2, 32, 20, 20), torch.randn(32, 32, 3, 3)
    assert flops(lambda: ops.dilated_conv2d(x, weight)) == 2 * 2 * 400 * 32 * 32 * 9
    ours, reference = flops(lambda: model(images)), 0
    with pspfast.backend("reference"):
        reference = flops(lambda: model(images))
    assert 0.8 < ours / reference < 1
    optimised = pspfast.optimize_for_inference(model)
    assert flops(lambda: optimised(images)) == pytest.approx(ours, rel=0.02)

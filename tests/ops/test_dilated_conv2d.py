import sys
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from op_tester import OpTester, moved, with_reference
from torch import Tensor

import pspfast
from pspfast.ops import dilated_conv2d

OPS = torch.ops.pspfast
# The package has the function under this name.
module = sys.modules["pspfast.ops.dilated_conv2d"]


def oracle(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor, dilation: int, relu: bool
) -> Tensor:
    out = F.conv2d(x, weight, bias, padding=dilation, dilation=dilation)
    out = out + residual.to(out.dtype)  # Under autocast all arguments are cast.
    return out.relu() if relu else out


def case(n: int, c: int, o: int, height: int, width: int, *args: Any) -> tuple[Any, Any]:
    return [(n, c, height, width), (o, c, 3, 3), (o,), (n, o, height, width)], args


class TestDilatedConv2d(OpTester):
    float32_error = 1e-5
    cases: ClassVar = [
        case(1, 2, 2, 4, 3, 1, False),
        case(2, 1, 3, 2, 3, 2, True),
        # Tiles over the borders, phases of two lengths, channels between two blocks.
        case(2, 19, 33, 17, 22, 1, False),
        case(1, 48, 16, 29, 31, 2, False),
        case(1, 16, 40, 40, 37, 4, False),
        # Many tiles, in parts: more channels than are transformed at a time.
        case(1, 530, 20, 16, 15, 1, False),
        case(1, 20, 530, 16, 16, 2, False),
        case(2, 16, 16, 66, 65, 1, False),
        # Left to the library.
        case(1, 3, 64, 9, 9, 1, False),
        case(1, 20, 20, 1, 1, 3, False),
        case(1, 20, 20, 7, 5, 11, False),
        case(0, 16, 16, 8, 8, 1, True),
    ]
    overloads: ClassVar = [
        (OPS.dilated_conv2d, [(1, 16, 20, 18), (17, 16, 3, 3)], (None, 1, None, False)),
        (OPS.dilated_conv2d, [(1, 3, 4, 3), (5, 3, 3, 3)], (None, 2, None, True)),
        (OPS.dilated_conv2d_grad_input, [(1, 17, 20, 18), (17, 16, 3, 3)], (1,)),
        (OPS.dilated_conv2d_grad_weight, [(1, 17, 20, 18), (1, 16, 20, 18)], (1, False)),
        (OPS.dilated_conv2d_grad_weight, [(1, 17, 20, 18), (1, 16, 20, 18)], (1, True)),
    ]

    def op(self, x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor, *args: Any) -> Tensor:
        dilation, relu = args
        return dilated_conv2d(x, weight, bias, dilation=dilation, residual=residual, relu=relu)

    def reference(self, *args: Any) -> Tensor:
        return oracle(*args)

    def test_reference_backend(self) -> None:
        for values, args in self.runs():
            with pspfast.backend("reference"):
                assert torch.equal(self.op(*values, *args), self.reference(*values, *args))


def relative_error(got: Tensor, expected: Tensor) -> float:
    return ((got.double() - expected).norm() / expected.norm()).item()


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    size=st.tuples(*[st.integers(1, 40)] * 2),
    channels=st.tuples(*[st.integers(1, 70)] * 2),
    batch=st.integers(1, 3),
    dilation=st.integers(1, 9),
    channels_last=st.booleans(),
)
def test_any_size(
    device: torch.device,
    size: tuple[int, int],
    channels: tuple[int, int],
    batch: int,
    dilation: int,
    channels_last: bool,
) -> None:
    in_, out = channels
    x = torch.randn(batch, in_, *size).to(device)
    weight = torch.randn(out, in_, 3, 3).to(device)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    leaves = [x.requires_grad_(), weight.requires_grad_()]
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    ours = dilated_conv2d(*leaves, dilation=dilation)
    expected = F.conv2d(*exact, padding=dilation, dilation=dilation)
    assert relative_error(ours, expected) <= 1e-5
    grad = torch.randn_like(ours)
    for got, wanted in zip(
        torch.autograd.grad(ours, leaves, grad),
        torch.autograd.grad(expected, exact, grad.double()),
        strict=True,
    ):
        # A weight that meets the map nowhere has no gradient.
        assert (got.double() - wanted).norm() <= 1e-5 * wanted.norm() + 1e-12


@pytest.mark.parametrize("channels", [(530, 130), (130, 530), (530, 520)])
def test_more_channels_than_are_transformed_at_a_time(
    channels: tuple[int, int], device: torch.device
) -> None:
    """On phases of whole tiles, and of one position more."""
    in_, out = channels
    leaves = [torch.randn(1, in_, 33, 17).to(device), torch.randn(out, in_, 3, 3).to(device)]
    exact = [leaf.double().requires_grad_() for leaf in leaves]
    ours = dilated_conv2d(*(leaf.requires_grad_() for leaf in leaves), dilation=2)
    expected = F.conv2d(*exact, padding=2, dilation=2)
    assert relative_error(ours, expected) <= 1e-5
    grad = torch.randn_like(ours)
    for got, wanted in zip(
        torch.autograd.grad(ours, leaves, grad),
        torch.autograd.grad(expected, exact, grad.double()),
        strict=True,
    ):
        assert relative_error(got, wanted) <= 1e-5


@pytest.mark.parametrize("channels", [(64, 64), (300, 260)])
def test_results_do_not_depend_on_the_number_of_threads(channels: tuple[int, int]) -> None:
    in_, out = channels
    x, weight = torch.randn(1, in_, 60, 60), torch.randn(out, in_, 3, 3)
    grad = torch.randn(1, out, 60, 60)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(
                [
                    dilated_conv2d(x, weight, dilation=2),
                    OPS.dilated_conv2d_grad_input(grad, weight, 2),
                    OPS.dilated_conv2d_grad_weight(grad, x, 2, False),
                ]
            )
    finally:
        torch.set_num_threads(threads)
    for one, *others in zip(*results, strict=True):
        assert all(torch.equal(one, other) for other in others)


def test_relu(device: torch.device) -> None:
    """Gradients pass where the result is positive: its own sign counts, not that of an oracle that
    rounds otherwise."""
    tensors, _ = case(1, 16, 17, 20, 18)
    leaves = [torch.randn(shape).to(device).requires_grad_() for shape in tensors]
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    x, weight, bias, residual = leaves
    ours = dilated_conv2d(x, weight, bias, residual=residual, relu=True)
    linear = oracle(*exact, 1, False)
    assert relative_error(ours, linear.relu()) <= 1e-5
    grad = torch.randn_like(ours)
    for got, expected in zip(
        torch.autograd.grad(ours, leaves, grad),
        torch.autograd.grad(linear, exact, (grad * (ours > 0)).double()),
        strict=True,
    ):
        assert relative_error(got, expected) <= 1e-5


@pytest.mark.parametrize("wanted", [0, 1, 2, 3])
def test_any_gradient_alone(wanted: int, device: torch.device) -> None:
    tensors, _ = case(1, 16, 17, 20, 18)
    inputs = [torch.randn(shape).to(device) for shape in tensors]
    leaf = inputs[wanted].requires_grad_()
    x, weight, bias, residual = inputs
    ours = dilated_conv2d(x, weight, bias, residual=residual)
    grad = torch.randn_like(ours)
    (got,) = torch.autograd.grad(ours, leaf, grad)
    (expected,) = torch.autograd.grad(oracle(*inputs, 1, False), leaf, grad)
    assert relative_error(got, expected.double()) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels", [(19, 33), (300, 260)])
def test_transformed_weight(channels: tuple[int, int], dtype: torch.dtype) -> None:
    """The same bits as with the weight itself."""
    in_, out = channels
    x, weight = torch.randn(1, in_, 21, 20, dtype=dtype), torch.randn(out, in_, 3, 3, dtype=dtype)
    bias, residual = torch.randn(out, dtype=dtype), torch.randn(1, out, 21, 20, dtype=dtype)
    transformed = OPS.winograd_weight(weight)
    assert transformed.isfinite().all()
    assert torch.equal(
        OPS.winograd_conv2d(x, transformed, out, bias, 2, residual, True),
        dilated_conv2d(x, weight, bias, dilation=2, residual=residual, relu=True),
    )


def test_memory_of_the_call_before_is_used_again() -> None:
    """Smaller and larger than what is kept, and after values that spread wherever they are read."""
    weight = torch.randn(300, 260, 3, 3)
    transformed = OPS.winograd_weight(weight)
    for height, value in ((40, float("nan")), (20, 1), (60, float("nan")), (40, 1)):
        x = value * torch.randn(1, 260, height, 24)
        got = OPS.winograd_conv2d(x, transformed, 300, None, 1, None, False)
        torch.testing.assert_close(got, dilated_conv2d(x, weight), rtol=0, atol=0, equal_nan=True)


def test_contracts_of_the_ops_behind_it() -> None:
    weight = torch.randn(33, 19, 3, 3)
    torch.library.opcheck(OPS.winograd_weight, (weight,))
    transformed = OPS.winograd_weight(weight)
    for x in (torch.randn(1, 19, 9, 8), torch.randn(2, 9, 8, 19).permute(0, 3, 1, 2)):
        torch.library.opcheck(OPS.winograd_conv2d, (x, transformed, 33, None, 2, None, False))


def test_nan_is_not_hidden_by_relu(device: torch.device) -> None:
    x = torch.zeros(1, 16, 20, 20, device=device)
    x[0, 3, 10, 10] = float("nan")
    out = dilated_conv2d(x, torch.ones(16, 16, 3, 3, device=device), relu=True)
    assert out[0, :, 9:12, 9:12].isnan().all()


X, WEIGHT = torch.zeros(1, 4, 8, 8), torch.zeros(5, 4, 3, 3)
BAD_INPUTS = [
    ({"x": X[0]}, ValueError, r"x: expected \[N, C, H, W\], got shape \[4, 8, 8\]"),
    ({"x": X[:, :3]}, ValueError, r"x: expected \[N, C, H, W\] with C = 4, got shape \[1, 3, 8, 8"),
    ({"x": X.int()}, TypeError, "x: expected float32, float16 or bfloat16"),
    ({"x": X[:, :, :0]}, ValueError, "x: expected H and W of 1 to 8388608, got 0 and 8"),
    ({"weight": WEIGHT[..., :2]}, ValueError, r"weight: expected \[O, C, 3, 3\], got shape"),
    ({"weight": WEIGHT[:0]}, ValueError, r"weight: expected \[O, C, 3, 3\], got shape"),
    ({"weight": WEIGHT.double()}, TypeError, "weight: expected .* as x, got"),
    ({"dilation": 0}, ValueError, "dilation: expected 1 to 8388608, got 0"),
    ({"bias": torch.zeros(4)}, ValueError, r"bias: expected \[O\] with O = 5, got shape \[4\]"),
    ({"bias": torch.zeros(5).half()}, TypeError, "bias: expected .* as x, got"),
    ({"residual": X}, ValueError, r"residual: expected shape \[1, 5, 8, 8\], got .*\[1, 4, 8, 8\]"),
    ({"residual": torch.zeros(1, 5, 8, 8).half()}, TypeError, "residual: expected .* as x, got"),
]


@with_reference
@pytest.mark.parametrize("bad", BAD_INPUTS, ids=lambda bad: bad[2][:20])
def test_errors(device: torch.device, bad: tuple[Any, ...]) -> None:
    changed, error, message = bad
    arguments = {"x": X, "weight": WEIGHT} | changed
    with pytest.raises(error, match=f"^dilated_conv2d: {message}"):
        dilated_conv2d(**moved(arguments, device))


def test_errors_of_the_ops_behind_it() -> None:
    grad = torch.zeros(1, 5, 8, 8)
    with pytest.raises(ValueError, match=r"^dilated_conv2d_grad_input: grad: .* with O = 5"):
        OPS.dilated_conv2d_grad_input(X, WEIGHT, 1)
    with pytest.raises(ValueError, match=r"^dilated_conv2d_grad_weight: grad: expected shape"):
        OPS.dilated_conv2d_grad_weight(grad[..., :7], X, 1, False)
    with pytest.raises(ValueError, match=r"^winograd_weight: weight: expected float32, .* Double"):
        OPS.winograd_weight(WEIGHT.double())
    with pytest.raises(ValueError, match=r"^winograd_conv2d: transformed: .* \[36, 272\], got"):
        OPS.winograd_conv2d(X, torch.zeros(36, 256), 5, None, 1, None, False)
    with pytest.raises(ValueError, match=r"^winograd_conv2d: transformed: expected Float, got"):
        OPS.winograd_conv2d(X, torch.zeros(36, 272).double(), 5, None, 1, None, False)

"""The operator behind wide depthwise convolutions in inference; it has no gradients."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from instruction_sets import assert_passes_at, at_lower_isas
from op_tester import DTYPES, LAYOUTS, strides_of
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pspfast import backends

pytestmark = pytest.mark.skipif("cpu" in backends.MISSING, reason="there is no op library")
depthwise_conv2d = torch.ops.pspfast.depthwise_conv2d


def oracle(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int, relu: bool) -> Tensor:
    padding = dilation * (weight.shape[2] // 2)
    out = F.conv2d(x, weight, bias, padding=padding, dilation=dilation, groups=x.shape[1])
    return out.relu() if relu else out


def arguments(
    n: int, c: int, height: int, width: int, k: int = 3, dilation: int = 1
) -> tuple[Tensor, Tensor, Tensor, int]:
    x, weight = torch.randn(n, c, height, width), torch.randn(c, 1, k, k)
    return x, weight, torch.randn(c), dilation


CASES = [
    (2, 19, 17, 13, 3, 1),
    # Some taps, and all but the middle one, lie in the padding.
    (1, 33, 17, 13, 3, 9),
    (1, 16, 9, 31, 3, 12),
    (1, 5, 7, 6, 3, 100),
    (2, 40, 11, 12, 5, 3),
    (1, 17, 8, 9, 1, 2),
    # Several parts of the channels.
    (1, 600, 5, 6, 3, 2),
    (1, 3, 1, 1, 3, 1),
    (0, 3, 4, 5, 3, 7),
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_is_the_convolution(case: tuple[int, ...], dtype: torch.dtype, layout: Any) -> None:
    x, weight, bias, dilation = arguments(*case)
    x, weight, bias = layout(x.to(dtype)), layout(weight.to(dtype)), layout(bias.to(dtype))
    for b, relu in ((None, False), (bias, False), (bias, True)):
        got = depthwise_conv2d(x, weight, b, dilation, relu)
        exact = oracle(
            x.double(), weight.double(), None if b is None else b.double(), dilation, relu
        )
        # Sums are in float32, or in float64, and rounded once.
        tolerance = 1e-12 if dtype == torch.float64 else max(torch.finfo(dtype).eps, 2e-6)
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), exact, rtol=tolerance, atol=8 * tolerance)


@at_lower_isas
def test_lower_isas(isa: str) -> None:
    assert_passes_at(isa, f"{__file__}::test_is_the_convolution")


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    size=st.tuples(*[st.integers(1, 40)] * 2),
    channels=st.integers(1, 70),
    batch=st.integers(1, 3),
    k=st.sampled_from([1, 3, 5, 7]),
    dilation=st.integers(1, 45),
)
def test_any_size(size: tuple[int, int], channels: int, batch: int, k: int, dilation: int) -> None:
    x, weight, bias, _ = arguments(batch, channels, *size, k)
    exact = oracle(x.double(), weight.double(), bias.double(), dilation, False)
    got = depthwise_conv2d(x, weight, bias, dilation, False)
    torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=1e-5)


def test_no_channels() -> None:
    x, weight, bias, _ = arguments(2, 0, 4, 5)
    assert depthwise_conv2d(x, weight, bias, 7, False).shape == x.shape


@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_format_is_kept(layout: Any) -> None:
    x, weight, bias, _ = arguments(2, 19, 7, 6)
    x = layout(x)
    expected = oracle(x, weight, bias, 4, False)
    assert strides_of(depthwise_conv2d(x, weight, bias, 4, False)) == strides_of(expected)


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    x, weight, bias, _ = arguments(1, 300, 19, 17)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(depthwise_conv2d(x, weight, bias, 5, True))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_nan_is_not_hidden_by_relu_and_goes_no_further() -> None:
    x, weight, bias, _ = arguments(1, 20, 15, 15)
    x[0, 3, 7, 7] = torch.nan
    got = depthwise_conv2d(x, weight, bias, 6, True)
    expected = oracle(x, weight, bias, 6, True)
    assert expected.isnan().sum() == 9
    torch.testing.assert_close(got, expected, equal_nan=True)


@pytest.mark.parametrize("layout", LAYOUTS[:2])
def test_contract(layout: Any) -> None:
    x, weight, bias, _ = arguments(2, 19, 7, 6)
    torch.library.opcheck(depthwise_conv2d, (layout(x), weight, bias, 4, True))
    torch.library.opcheck(depthwise_conv2d, (layout(x), weight, None, 4, False))


def test_flops() -> None:
    x, weight, bias, _ = arguments(2, 19, 7, 6)
    with FlopCounterMode(display=False) as ours:
        depthwise_conv2d(x, weight, bias, 4, True)
    with FlopCounterMode(display=False) as eager:
        oracle(x, weight, bias, 4, True)
    assert ours.get_total_flops() == eager.get_total_flops() == 2 * 9 * x.numel()


X, WEIGHT = torch.zeros(1, 4, 8, 8), torch.zeros(4, 1, 3, 3)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": X[0]}, r"x: expected \[N, C, H, W\], got shape \[4, 8, 8\]"),
        ({"x": X.int()}, "x: expected float32, float16.*got Int"),
        ({"x": X[:, :, :0]}, "x: expected H and W of 1 to 8388608, got 0 and 8"),
        (
            {"x": X[:, :3]},
            r"weight: expected \[C, 1, k, k\] with C = 3 and an odd k, got .*4, 1, 3",
        ),
        ({"weight": torch.zeros(4, 1, 4, 4)}, r"weight: .* an odd k, got shape \[4, 1, 4, 4\]"),
        ({"weight": torch.zeros(4, 1, 3, 5)}, r"weight: .* an odd k, got shape \[4, 1, 3, 5\]"),
        ({"weight": torch.zeros(4, 1, 0, 0)}, r"weight: .* an odd k, got shape \[4, 1, 0, 0\]"),
        ({"weight": torch.zeros(4, 2, 3, 3)}, r"weight: .* an odd k, got shape \[4, 2, 3, 3\]"),
        ({"weight": torch.zeros(4, 1, 3)}, r"weight: .* an odd k, got shape \[4, 1, 3\]"),
        ({"weight": WEIGHT.double()}, "weight: expected Float as x, got Double"),
        ({"bias": torch.zeros(3)}, r"bias: expected \[O\] with O = 4, got shape \[3\]"),
        ({"bias": torch.zeros(4).double()}, "bias: expected Float as x, got Double"),
        ({"dilation": 0}, "dilation: expected 1 to 8388608, got 0"),
    ],
)
def test_errors(changed: dict[str, Any], message: str) -> None:
    given_ = {"x": X, "weight": WEIGHT, "bias": None, "dilation": 1, "relu": False} | changed
    with pytest.raises(ValueError, match=f"^depthwise_conv2d: {message}"):
        depthwise_conv2d(*given_.values())

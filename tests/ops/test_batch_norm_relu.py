import sys
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from op_tester import OpTester
from torch import Tensor, nn

from pspfast.ops import batch_norm_relu

OPS = torch.ops.pspfast
# The package has the function under this name.
module = sys.modules["pspfast.ops.batch_norm_relu"]
EPS = 1e-5


def oracle(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor, relu: bool) -> Tensor:
    out = F.batch_norm(x, None, None, weight, bias, training=True, eps=EPS) + residual
    return out.relu() if relu else out


def case(n: int, c: int, height: int, width: int, relu: bool) -> tuple[Any, Any]:
    shape = (n, c, height, width)
    return [shape, (c,), (c,), shape], (relu,)


# Mean, variance and count, weight and bias.
CONSTANTS = torch.rand(11) + 0.5, torch.rand(5), torch.rand(5)


class TestBatchNormRelu(OpTester):
    cases: ClassVar = [
        case(2, 3, 4, 3, True),
        case(2, 3, 3, 4, False),
        case(1, 19, 17, 22, True),
        case(3, 16, 9, 1, True),
        # More rows of channels than a chunk, and chunks than a slice has.
        case(2, 40, 60, 59, True),
        case(1, 5, 130, 131, False),
    ]
    overloads: ClassVar = [
        # With statistics that are no function of x, gradients are checked above only.
        (OPS.batch_norm_relu, [(2, 5, 4, 3)], (*CONSTANTS, None, False, EPS)),
    ]

    def op(self, x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor, relu: bool) -> Tensor:
        return batch_norm_relu(x, None, None, weight, bias, residual, relu=relu, eps=EPS)

    def reference(self, *args: Any) -> Tensor:
        return oracle(*args)


def opcheck_without_gradients(op: Any, *args: Any) -> None:
    torch.library.opcheck(op, args, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("with_residual", [False, True])
def test_opcheck_of_the_other_ops(with_residual: bool, memory_format: torch.memory_format) -> None:
    x, grad, residual = torch.randn(3, 2, 5, 4, 3).unbind()
    x, grad, residual = (t.contiguous(memory_format=memory_format) for t in (x, grad, residual))
    statistics, *others = CONSTANTS
    given = residual if with_residual else None
    arguments = (grad, x, statistics, *others, given, True, EPS)
    opcheck_without_gradients(OPS.batch_norm_relu, x, *CONSTANTS, given, True, EPS)
    opcheck_without_gradients(OPS.batch_norm_relu_backward, *arguments)
    opcheck_without_gradients(OPS.batch_norm_relu_grad_sums, *arguments)
    sums = torch.randn(2, 5)
    opcheck_without_gradients(
        OPS.batch_norm_relu_grad_input, grad, x, statistics, sums, *others, True, EPS
    )
    running = torch.zeros(5), torch.ones(5), torch.tensor(3)
    for given in ((None, None, None), running):
        opcheck_without_gradients(OPS.batch_norm_statistics, x, *given, 0.1)
        opcheck_without_gradients(
            OPS.batch_norm_merge_statistics, torch.stack(3 * [statistics]), *given, 0.1
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_merged_statistics_are_those_of_all_values(dtype: torch.dtype) -> None:
    """Of parts of any size, one of them empty, far from zero and from each other."""
    x = (torch.randn(7, 5, 6, 4, dtype=torch.float64) + 1000).to(dtype)
    x[2:5] += 3
    parts = [
        OPS.batch_norm_statistics(part, None, None, None, 0.0) for part in x.split((2, 0, 4, 1))
    ]
    running = torch.randn(5, dtype=dtype), torch.rand(5, dtype=dtype), torch.tensor(41)
    moved = [t.clone() for t in running]
    got = OPS.batch_norm_merge_statistics(torch.stack(parts), *moved, 0.25)
    var, mean = torch.var_mean(x.double(), (0, 2, 3), correction=0)
    expected = torch.cat([mean, var, torch.tensor([7.0 * 24])])
    tolerances = {"rtol": 1e-5 if dtype == torch.float32 else 1e-12, "atol": 0}
    torch.testing.assert_close(got.double(), expected, **tolerances)
    unbiased = var * (168 / 167)
    for to, before, after in zip((mean, unbiased), running, moved, strict=False):
        torch.testing.assert_close(
            after.double(), torch.lerp(before.double(), to, 0.25), rtol=1e-5, atol=1e-5
        )
    assert moved[2] == 42


def test_nothing_moves_towards_the_variance_of_one_value() -> None:
    running = torch.zeros(5), torch.ones(5), torch.tensor(0)
    OPS.batch_norm_statistics(torch.randn(1, 5, 1, 1), *running, 0.1)
    assert (running[0] == 0).all() and (running[1] == 1).all() and running[2] == 1


def test_running_statistics_of_other_types_and_strides() -> None:
    x = torch.randn(2, 5, 4, 3)
    mean, var = torch.zeros(2, 10, dtype=torch.bfloat16)[:, ::2].unbind()
    expected = torch.zeros(2, 5)
    batch_norm_relu(x, *expected, torch.ones(5), torch.zeros(5))
    versions = mean._version, var._version
    batch_norm_relu(x, mean, var, torch.ones(5), torch.zeros(5))
    assert torch.equal(torch.stack([mean, var]), expected.bfloat16())
    assert (mean._version, var._version) > versions


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(1, 3), st.integers(1, 70), st.integers(1, 40), st.integers(2, 40)),
    with_residual=st.booleans(),
    relu=st.booleans(),
    mean=st.sampled_from([0.0, 1e3]),
)
def test_any_size(size: tuple[int, ...], with_residual: bool, relu: bool, mean: float) -> None:
    """Where the mean is large, squares would lose the variance."""
    x = (torch.randn(size) + mean).contiguous(memory_format=torch.channels_last)
    weight, bias, residual = torch.rand(size[1]) + 0.5, torch.randn(size[1]), torch.randn(size)
    statistics = torch.zeros(size[1]), torch.ones(size[1])
    out = batch_norm_relu(
        x, *statistics, weight, bias, residual if with_residual else None, relu=relu, eps=EPS
    )
    running = [s.double() for s in (torch.zeros(size[1]), torch.ones(size[1]))]
    expected = F.batch_norm(
        x.double(), *running, weight.double(), bias.double(), True, 0.1, EPS
    ) + (residual.double() if with_residual else 0)
    # x has errors of an ulp of its mean already, which a small variance scales up.
    std = x.double().var((0, 2, 3), correction=0).sqrt().min().clamp(min=1e-3).item()
    atol = 1e-5 + mean * torch.finfo(torch.float32).eps / std
    torch.testing.assert_close(
        out.double(), expected.relu() if relu else expected, rtol=1e-5, atol=10 * atol
    )
    torch.testing.assert_close([s.double() for s in statistics], running, rtol=1e-5, atol=1e-5)


def test_without_residual_as_modules_do() -> None:
    x = torch.randn(2, 5, 9, 7).contiguous(memory_format=torch.channels_last)
    bn = nn.BatchNorm2d(5, momentum=0.3)
    nn.init.uniform_(bn.weight)
    running = bn.running_mean.clone(), bn.running_var.clone()
    for _ in range(3):
        expected = bn(x).relu()
        out = batch_norm_relu(x, *running, bn.weight, bn.bias, momentum=0.3)
        torch.testing.assert_close(out, expected)
    torch.testing.assert_close(running, (bn.running_mean, bn.running_var))


def test_running_statistics_move_when_compiled() -> None:
    x = torch.randn(2, 5, 4, 3)

    def run(function: Any) -> tuple[torch.Tensor, ...]:
        running = torch.zeros(5), torch.ones(5)
        weight = torch.ones(5, requires_grad=True)
        out = function(x, *running, weight, torch.zeros(5))
        return (out.detach(), *torch.autograd.grad(out.square().sum(), weight), *running)

    compiled = torch.compile(batch_norm_relu, fullgraph=True, backend="aot_eager")
    for got, expected in zip(run(compiled), run(batch_norm_relu), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("with_residual", [False, True])
def test_applied_again_it_gives_the_same_bits(with_residual: bool) -> None:
    x, residual = torch.randn(2, 2, 40, 33, 9).unbind()
    weight, bias = torch.rand(40), torch.randn(40)
    given = residual if with_residual else None
    out = batch_norm_relu(x, None, None, weight, bias, given, eps=EPS)
    statistics = module.batch_norm_statistics(x, (None, None, None), 0.0)
    again = module.normalize(x, statistics, weight, bias, given, relu=True, eps=EPS)
    assert torch.equal(out, again)


def test_gradient_of_not_a_number_as_torch() -> None:
    x = torch.randn(2, 3, 4, 4)
    residual = torch.randn(2, 3, 4, 4)
    residual[0, 0, 0, 0] = torch.nan
    grads = []
    for function in (
        lambda r: batch_norm_relu(x, None, None, torch.ones(3), torch.zeros(3), r),
        lambda r: oracle(x, torch.ones(3), torch.zeros(3), r, True),
    ):
        leaf = residual.clone().requires_grad_()
        out = function(leaf)
        assert out[0, 0, 0, 0].isnan()
        grads.append(torch.autograd.grad(out, leaf, torch.ones_like(out))[0])
    assert torch.equal(*grads)


def test_result_does_not_depend_on_the_number_of_threads() -> None:
    x = torch.randn(2, 24, 61, 47).contiguous(memory_format=torch.channels_last)
    weight, bias = torch.rand(24).requires_grad_(), torch.randn(24)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            out = batch_norm_relu(x, None, None, weight, bias)
            results.append([out, *torch.autograd.grad(out.sum(), weight)])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


X, C = torch.zeros(2, 3, 4, 4), torch.zeros(3)


@pytest.mark.parametrize(
    ("error", "message", "args"),
    [
        (ValueError, r"x: expected \[N, C, H, W\]", (X[0], None, None, C, C)),
        (
            ValueError,
            "x: expected at least 2 values per channel",
            (X[:1, :, :1, :1], None, None, C, C),
        ),
        (
            ValueError,
            r"weight: expected \[C\] with C = 3, got shape \[2\]",
            (X, None, None, C[:2], C),
        ),
        (ValueError, r"bias: expected \[C\] with C = 3", (X, None, None, C, C[:1])),
        (ValueError, r"residual: expected shape \[2, 3, 4, 4\], got", (X, None, None, C, C, X[:1])),
        (TypeError, r"residual: expected .* as x, got", (X, None, None, C, C, X.half())),
        (TypeError, "x: expected float32, float16 or bfloat16", (X.int(), None, None, C, C)),
    ],
)
def test_wrong_input(error: type[Exception], message: str, args: tuple[Any, ...]) -> None:
    with pytest.raises(error, match=f"^batch_norm_relu: {message}"):
        batch_norm_relu(*args)


@pytest.mark.parametrize("wrong", ["running_mean", "running_var"])
@pytest.mark.parametrize("tensor", [torch.zeros(5), torch.zeros(4, device="meta")], ids=str)
def test_wrong_running_statistics_are_named_before_any_is_written(
    wrong: str, tensor: torch.Tensor
) -> None:
    x, ones = torch.randn(2, 4, 3, 3), torch.ones(4)
    running = {"running_mean": torch.zeros(4), "running_var": torch.ones(4)}
    given = {**running, wrong: tensor}
    with pytest.raises(ValueError, match=rf"^batch_norm_relu: {wrong}: expected "):
        batch_norm_relu(x, given["running_mean"], given["running_var"], ones, ones)
    assert (running["running_mean"] == 0).all() and (running["running_var"] == 1).all()

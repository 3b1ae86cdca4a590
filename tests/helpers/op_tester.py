"""What every op promises, tested once. A subclass named Test… says which op and on which inputs."""

import sys
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
import torch
from instruction_sets import assert_passes_at, at_lower_isas
from torch import Tensor

import pspfast
from pspfast import backends


def on_a_gpu(backend: str) -> Any:
    reason = backends.MISSING.get(backend) or "there is no GPU"
    if torch.cuda.is_available():
        reason = backends.why_not(backend, "cuda") or ""
    return pytest.param(backend, marks=pytest.mark.skipif(bool(reason), reason=reason))


# Backends, for the fixture `implementation`; `device` is the one that they serve.
IMPLEMENTATIONS = ["cpu", on_a_gpu("cuda"), on_a_gpu("triton")]
with_reference = pytest.mark.parametrize(
    "implementation", ["reference", *IMPLEMENTATIONS], indirect=True
)


DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def contiguous(x: Tensor) -> Tensor:
    return x


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def sliced(x: Tensor) -> Tensor:
    """The same values as every second element of a larger tensor along its last axis."""
    larger = x.new_full((*x.shape[:-1], 2 * x.shape[-1]), float("nan"))
    larger[..., ::2] = x
    return larger[..., ::2]


def permuted(x: Tensor) -> Tensor:
    """The same values with the last two axes swapped in memory."""
    return x.mT.contiguous().mT if x.dim() > 1 else x


LAYOUTS = [contiguous, channels_last, sliced, permuted]


def moved(arguments: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The arguments, tensors among them on the device."""
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in arguments.items()}


def exact_dtype(device: torch.device) -> torch.dtype:
    """The widest that kernels on the device have."""
    return torch.float64 if device.type == "cpu" else torch.float32


def skip_float64_on_a_gpu(dtype: torch.dtype, device: torch.device) -> None:
    if dtype == torch.float64 and device.type != "cpu":
        pytest.skip("the kernels for GPUs have no float64")


def assert_close(got: Any, expected: Any) -> None:
    """Of float64 as torch has it; of float32, as a GPU computes, to the rounding of sums."""
    gots, expecteds = ([x] if isinstance(x, Tensor) else x for x in (got, expected))
    for one, other in zip(gots, expecteds, strict=True):
        tolerances = {} if one.dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-4}
        torch.testing.assert_close(one, other, **tolerances)


def strides_of(tensor: Tensor) -> list[int]:
    """Of the axes along which there is more than one element: others address nothing."""
    return [s for s, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]


def shapes_of(tensors: list[Tensor]) -> list[list[int]]:
    return [list(t.shape) for t in tensors]


class OpTester:
    """Subclasses set `op`, `reference` and `cases`; a case is (shapes of tensors, other arguments).

    `overloads` are the C++ ops behind it, for `opcheck`, as (op, shapes, arguments).
    """

    # Relative to the largest value, of ops that do not compute as eager does.
    float32_error: ClassVar[float] = 0.0

    cases: ClassVar[list[tuple[list[tuple[int, ...]], tuple[Any, ...]]]]
    overloads: ClassVar[list[tuple[Any, list[tuple[int, ...]], tuple[Any, ...]]]]

    def op(self, *args: Any) -> Tensor:
        raise NotImplementedError

    def reference(self, *args: Any) -> Tensor:
        raise NotImplementedError

    def runs(self) -> Iterator[tuple[list[Tensor], tuple[Any, ...]]]:
        for shapes, args in self.cases:
            yield [torch.randn(shape, dtype=torch.float64) for shape in shapes], args

    @staticmethod
    def forward_backward(
        function: Any, tensors: list[Tensor], args: tuple[Any, ...], grad_as_output: bool = False
    ) -> list[Tensor]:
        """The output, then the gradients for a fixed random gradient of the output, which is
        contiguous or in memory as the output is."""
        leaves = [t.detach().requires_grad_() for t in tensors]
        output = function(*leaves, *args)
        generator = torch.Generator().manual_seed(1)
        grad = torch.randn(output.shape, generator=generator, dtype=torch.float64)
        grad = grad.to(output)
        output.backward(torch.empty_like(output).copy_(grad) if grad_as_output else grad)
        return [output.detach(), *(leaf.grad for leaf in leaves)]

    def error_bound(self, eager: Tensor, expected: Tensor) -> float:
        """Twice eager's error against float64, and one ulp of the largest value."""
        ulp = torch.finfo(eager.dtype).eps
        if eager.dtype == torch.float32:
            ulp = max(ulp, self.float32_error)
        return (
            2 * (eager.double() - expected).abs().max().item() + ulp * expected.abs().max().item()
        )

    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_no_less_exact_than_eager(
        self, dtype: torch.dtype, layout: Any, device: torch.device
    ) -> None:
        """Errors against float64 are within `error_bound`; float64 itself is summed in another
        order."""
        skip_float64_on_a_gpu(dtype, device)
        for values, args in self.runs():
            tensors = [layout(value.to(device, dtype)) for value in values]
            exact = self.forward_backward(self.reference, [t.double() for t in tensors], args)
            eager = self.forward_backward(self.reference, tensors, args)
            ours = self.forward_backward(self.op, tensors, args)
            for got, other, expected in zip(ours, eager, exact, strict=True):
                assert got.dtype == other.dtype
                assert got.shape == expected.shape
                if not expected.numel():
                    continue
                if dtype == torch.float64:
                    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
                    continue
                error = (got.double() - expected).abs().max().item()
                bound = self.error_bound(other, expected)
                assert error <= bound, (
                    f"{shapes_of(tensors)} {args}: error {error:.3g} > {bound:.3g}"
                )

    @pytest.mark.parametrize("layout", [contiguous, channels_last])
    def test_memory_format_is_kept(self, layout: Any, device: torch.device) -> None:
        for values, args in self.runs():
            tensors = [layout(value.float().to(device)) for value in values]
            _, *grads = self.forward_backward(self.op, tensors, args)
            for tensor, grad in zip(tensors, grads, strict=True):
                if grad.numel():
                    assert strides_of(grad) == strides_of(tensor)

    @pytest.mark.parametrize("layout", [contiguous, channels_last])
    def test_repeats_bit_for_bit(self, layout: Any, device: torch.device) -> None:
        for values, args in self.runs():
            tensors = [layout(value.float().to(device)) for value in values]
            first, second = (self.forward_backward(self.op, tensors, args) for _ in range(2))
            for a, b in zip(first, second, strict=True):
                assert torch.equal(a, b)

    @pytest.mark.parametrize("layout", [contiguous, channels_last])
    def test_gradcheck(self, layout: Any) -> None:
        for shapes, args in self.small_cases():
            tensors = [
                layout(torch.randn(shape, dtype=torch.float64)).requires_grad_() for shape in shapes
            ]
            torch.autograd.gradcheck(lambda *t, a=args: self.op(*t, *a), tensors)
            torch.autograd.gradgradcheck(lambda *t, a=args: self.op(*t, *a), tensors)

    @pytest.mark.parametrize("layout", [contiguous, channels_last])
    def test_gradients_of_gradients(self, layout: Any, device: torch.device) -> None:
        """In float32, which all backends have."""

        def second(function: Any, tensors: list[Tensor], args: tuple[Any, ...]) -> list[Tensor]:
            leaves = [t.detach().requires_grad_() for t in tensors]
            grads = torch.autograd.grad(
                function(*leaves, *args).square().sum(), leaves, create_graph=True
            )
            total = sum(grad.square().sum() for grad in grads)
            return list(torch.autograd.grad(total, leaves))

        for shapes, args in self.small_cases():
            tensors = [layout(torch.randn(shape).to(device)) for shape in shapes]
            exact = second(self.reference, [t.double() for t in tensors], args)
            for got, expected in zip(second(self.op, tensors, args), exact, strict=True):
                assert (got - expected).norm() <= 1e-4 * expected.norm() + 1e-6

    @pytest.mark.parametrize("layout", [contiguous, channels_last])
    def test_opcheck(self, layout: Any, implementation: str, device: torch.device) -> None:
        for cpu_op, shapes, args in self.overloads:
            op = self.op_of(cpu_op, implementation)
            if op is None:
                continue
            tensors = [layout(torch.randn(shape).to(device)).requires_grad_() for shape in shapes]
            args = [arg.to(device) if isinstance(arg, Tensor) else arg for arg in args]
            torch.library.opcheck(op, (*tensors, *args))

    @staticmethod
    def op_of(op: Any, implementation: str) -> Any:
        """The same op on another backend, if it has it."""
        name = op._qualified_op_name
        if implementation == "triton":
            backends.load_triton_ops()
            return getattr(torch.ops.pspfast, f"{name.removeprefix('pspfast::')}_triton", None)
        return (
            op
            if torch._C._dispatch_has_kernel_for_dispatch_key(name, implementation.upper())
            else None
        )

    @pytest.mark.parametrize("layout", [contiguous, channels_last])
    def test_compiles_without_graph_break(self, layout: Any, device: torch.device) -> None:
        shapes, args = self.small_cases()[0]
        tensors = [layout(torch.randn(shape).to(device)) for shape in shapes]
        # aot_eager: what is tested is tracing, fake kernels and autograd, not generated code.
        compiled = torch.compile(self.op, fullgraph=True, backend="aot_eager")
        # Traced gradients are in memory as the outputs were, whatever is passed.
        for ours, eager in zip(
            self.forward_backward(compiled, tensors, args),
            self.forward_backward(self.op, tensors, args, grad_as_output=True),
            strict=True,
        ):
            assert torch.equal(ours, eager)
            assert strides_of(ours) == strides_of(eager)

    def test_autocast(self, device: torch.device) -> None:
        shapes, args = self.small_cases()[0]
        tensors = [torch.randn(shape).to(device) for shape in shapes]
        with torch.autocast(device.type, torch.bfloat16):
            ours, eager = self.op(*tensors, *args), self.reference(*tensors, *args)
        assert ours.dtype == eager.dtype
        torch.testing.assert_close(ours, eager, atol=1e-2, rtol=2e-2)

    @at_lower_isas
    def test_lower_isas(self, isa: str) -> None:
        name = "test_no_less_exact_than_eager"
        test = f"{sys.modules[type(self).__module__].__file__}::{type(self).__name__}::{name}"
        assert_passes_at(isa, "-k", "cpu", test)

    def test_reference_backend(self) -> None:
        for values, args in self.runs():
            with pspfast.backend("reference"):
                torch.testing.assert_close(self.op(*values, *args), self.reference(*values, *args))

    def small_cases(self) -> list[tuple[list[tuple[int, ...]], tuple[Any, ...]]]:
        """The cases of few enough elements for numerical derivatives."""
        return [
            (shapes, args)
            for shapes, args in self.cases
            if 0 < sum(torch.Size(shape).numel() for shape in shapes) <= 200
        ]

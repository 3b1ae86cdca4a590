"""Other libraries' models for other runtimes, rewritten as ``torch.compile(backend="pspfast")``
does, in standard operators."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch._export.verifier import SpecViolationError
from torch.export.graph_signature import InputKind

from pspfast.deployment import winograd as winograd_form
from pspfast.deployment.decompositions import decompositions
from pspfast.deployment.writing import checked_path, write
from pspfast.ops import upsample_concat_conv2d

_log = logging.getLogger(__name__)


def export_rewritten(
    model: nn.Module,
    inputs: Sequence[Tensor],
    path: str | Path,
    *,
    dynamic: bool = False,
    winograd: bool = True,
) -> Path:
    """Writes another library's model as an ONNX file or a ``torch.export`` program, its multi-scale
    heads made cheaper by the rules of ``torch.compile(backend="pspfast")``.

    The file has standard operators only: it runs where pspfast is not installed. Results are those
    of the model in evaluation.

    Args:
        model: any module that ``torch.export`` takes; it is left as it is.
        inputs: tensors that ``model(*inputs)`` takes, of the usual size.
        path: of the file: ``.onnx`` (needs onnx and onnxscript), or ``.pt2``, which
            ``torch.export.load`` reads.
        dynamic: whether batch, H and W of the inputs ``[N, C, H, W]`` are free, where the model
            allows it; batch, H and W of ``inputs`` are then at least 2, and images that the file is
            run on so large that a pooled map has more rows and columns than bins.
        winograd: as of :func:`export`.

    Returns:
        The path. An ONNX file's inputs have the names of ``model.forward``'s, its outputs those of
        the model's dictionary, ``out`` where it gives a tensor, else ``out_0``, ``out_1``….

    Raises:
        TypeError, ValueError, NotADirectoryError: an argument is not as above, or the model does
            not allow free sizes. Nothing is written then.
        ModuleNotFoundError: ONNX is meant, and onnx or onnxscript is not installed.
        RuntimeError: this torch cannot keep Winograd's form in a program, as 2.11.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(3, 4, 1))
        >>> export_rewritten(model, [torch.zeros(1, 3, 8, 8)], "model.pt2").name
        'model.pt2'
    """
    path = checked_path(path, "export_rewritten")
    program, names = _programmed(model, inputs, dynamic, winograd)
    write(
        program,
        path,
        tuple(inputs),
        input_names=names,
        output_names=_output_names(program),
    )
    return path


def rewritten_program(
    model: nn.Module,
    inputs: Sequence[Tensor],
    *,
    dynamic: bool = False,
    winograd: bool = True,
) -> torch.export.ExportedProgram:
    """The program that :func:`export_rewritten` writes, for whatever else takes such programs.

    Args:
        model: as there.
        inputs: as there; the program takes them by position.
        dynamic: as there.
        winograd: as there.

    Raises:
        TypeError, ValueError, RuntimeError: as there.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(3, 4, 1))
        >>> program = rewritten_program(model, [torch.zeros(1, 3, 8, 8)])
        >>> program.module()(torch.zeros(1, 3, 8, 8)).shape
        torch.Size([1, 4, 16, 16])
    """
    return _programmed(model, inputs, dynamic, winograd)[0]


def _programmed(
    model: nn.Module, inputs: Sequence[Tensor], dynamic: bool, winograd: bool
) -> tuple[torch.export.ExportedProgram, list[str]]:
    """The program, and the names of its inputs."""
    _check(model, inputs, dynamic)
    shapes = tuple(_free(x) if dynamic else None for x in inputs)
    # Layers of training, as dropout, are not in the file.
    evaluated = copy.deepcopy(model).eval()
    with torch.no_grad():
        captured = _exported(evaluated, inputs, shapes)
        rewritten = _Rewritten(captured)
        if not rewritten.rules:
            _log.warning(
                "export_rewritten: no rule applies to %s: its layers are as they were",
                type(model).__name__,
            )
        program = _exported(rewritten, inputs, (shapes,))
    program = program.run_decompositions(decompositions())
    if winograd:
        try:
            program = program.run_decompositions(winograd_form.decompositions())
        except SpecViolationError as error:
            # torch 2.11 does not keep the constants of decompositions.
            raise RuntimeError(
                "export_rewritten: winograd: expected a torch that keeps the matrices of this form "
                f"in a program, got {torch.__version__}; winograd=False leaves them out"
            ) from error
    return program, list(captured.graph_signature.user_inputs)


class _Rewritten(nn.Module):
    """A captured program after the rules, with what they derive from weights computed.

    Args:
        program: in evaluation; its graph is changed.

    Attributes:
        rules: names of those that applied.
    """

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        super().__init__()
        # They import torch's compiler, which takes longer than the rest of pspfast.
        from torch._guards import detect_fake_mode

        from pspfast.rewrite.derived import lift_derived
        from pspfast.rewrite.graph import Graph
        from pspfast.rewrite.report import Report

        module = program.graph_module
        values = [n.meta.get("val") for n in module.graph.nodes if n.op == "placeholder"]
        mode = detect_fake_mode(values)
        assert mode is not None
        report = Report()
        graph = Graph(module, mode, report)
        for rule in _rules():
            graph.apply(rule)
        self.rules = [applied.rule for applied in report.applications]
        known = {**program.state_dict, **program.constants}
        weights = [
            None if spec.kind is InputKind.USER_INPUT else known[spec.target]
            for spec in program.graph_signature.input_specs
        ]
        derived = lift_derived(module)
        module.graph.lint()
        module.recompile()
        self._interpreter = fx.Interpreter(module)
        self._out_spec = program.call_spec.out_spec
        #: The buffer of each argument of the graph; None for an input.
        self._sources: list[str | None] = []
        for i, tensor in enumerate([*weights, *(derived(weights) if derived else [])]):
            name = f"weight_{i}"
            self._sources.append(None if tensor is None else name)
            if tensor is not None:
                self.register_buffer(name, tensor.detach().contiguous())

    def forward(self, *inputs: Tensor) -> Any:
        """What the model gives."""
        left = iter(inputs)
        arguments = [next(left) if name is None else getattr(self, name) for name in self._sources]
        return pytree.tree_unflatten(self._interpreter.run(*arguments), self._out_spec)


def _rules() -> list[Any]:
    """Those whose operators are cheaper as standard ones, too. Runtimes fold BatchNorm into plain
    convolutions themselves, but not into the sum that a head over several maps becomes."""
    from pspfast.rewrite import rules

    folded = rules.folded_conv2d
    heads = SimpleNamespace(
        NAME=folded.NAME, TARGETS=(upsample_concat_conv2d,), rewrite=folded.rewrite
    )
    return [
        rules.same_size_upsample,
        rules.summed_upsample,
        rules.pointwise_before_upsample,
        rules.upsample_concat_conv2d,
        rules.merged_pointwise,
        rules.pyramid_pool,
        heads,
    ]


def _exported(
    model: nn.Module, inputs: Sequence[Tensor], shapes: tuple[Any, ...]
) -> torch.export.ExportedProgram:
    try:
        return torch.export.export(model, tuple(inputs), dynamic_shapes=shapes)
    except torch._dynamo.exc.UserError as error:
        # What torch says of sizes that a model fixes.
        raise ValueError(f"export_rewritten: {type(model).__name__}: {error}") from error


def _free(x: Tensor) -> dict[int, Any] | None:
    """Which axes of an input are free."""
    return dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC) if x.dim() == 4 else None


def _check(model: Any, inputs: Any, dynamic: bool) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"export_rewritten: model: expected an nn.Module, got {type(model).__name__}"
        )
    wrong = (
        [inputs] if isinstance(inputs, Tensor) else [x for x in inputs if not isinstance(x, Tensor)]
    )
    if wrong:
        got = type(wrong[0]).__name__
        raise TypeError(f"export_rewritten: inputs: expected a sequence of tensors, got {got}")
    if isinstance(model, torch._dynamo.OptimizedModule):
        raise TypeError(
            "export_rewritten: model: expected one that is not compiled, got what torch.compile "
            "made: export the model that it was made of"
        )
    for i, x in enumerate(inputs):
        if dynamic and x.dim() == 4 and min(x.shape[0], *x.shape[2:]) < 2:
            raise ValueError(
                f"export_rewritten: inputs: {i}: expected batch, H and W of at least 2 where they "
                f"are free, got {list(x.shape)}"
            )


def _output_names(program: torch.export.ExportedProgram) -> list[str]:
    """Of a dictionary its keys, which ``ModelOutput`` is, too."""
    spec = program.call_spec.out_spec
    assert spec is not None
    leaves = pytree.tree_flatten_with_path(pytree.tree_unflatten(range(spec.num_leaves), spec))[0]
    paths = ["_".join(str(getattr(k, "key", getattr(k, "idx", k))) for k in p) for p, _ in leaves]
    return ["out" if not p else f"out_{p}" if p[0].isdigit() else p for p in paths]

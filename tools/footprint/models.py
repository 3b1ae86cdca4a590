"""Other libraries' models in bfloat16, eager and with ``torch.compile(backend="pspfast")``."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeCopyMode

from benchmarks.test_models import MODELS, SIZE, upsampled
from pspfast.rewrite import backend, rules
from pspfast.rewrite.report import Report
from tools.footprint.imagined_gpu import on_an_imagined_gpu
from tools.operator_costs import Footprint

NAMES = ("UPerNet-ConvNeXt-T", "SegFormer-B2")
BATCH = 16
# This rule is for the CPU, which the imagined GPU's tensors say that they are on.
RULES = [rule for rule in rules.RULES if rule is not rules.folded_conv2d]


def count(name: str, side: str, *, training: bool, batch: int = BATCH) -> Footprint:
    """Of images to labels, or of a step's forward and backward pass; by ``"ours"`` or ``"eager"``.

    Both sides run as Dynamo captured them. What ours derives from weights is there from the start,
    as it is from the second call on.
    """
    torch.compiler.reset()
    model = MODELS[name]().to(torch.bfloat16, memory_format=torch.channels_last).train(training)
    with on_an_imagined_gpu() as mode, torch.set_grad_enabled(training):
        with FakeCopyMode(mode):
            model = copy.deepcopy(model)
        images = torch.empty(batch, 3, SIZE, SIZE, dtype=torch.bfloat16)
        images = images.contiguous(memory_format=torch.channels_last)
        target = torch.empty(batch, SIZE, SIZE, dtype=torch.long)
        footprint = Footprint([*model.parameters(), *model.buffers(), images, target])

        def run(images: Tensor, target: Tensor) -> Tensor:
            logits = upsampled(model, images)
            return F.cross_entropy(logits, target) if training else logits.argmax(1)

        # transformers installs hooks at the first call, which Dynamo would not capture.
        run(images[:, :, :64, :64], target[:, :64, :64])
        out = torch.compile(run, backend=_counted(side, footprint))(images, target)
        if training:
            with footprint:
                out.backward()
    return footprint


def _counted(side: str, footprint: Footprint) -> Callable[..., Callable[..., Any]]:
    def rest(module: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            footprint.hold(arguments)
            with footprint:
                return module(*arguments)

        return run

    def rewriting(module: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        with mock.patch.object(backend, "RULES", RULES):
            return backend.rewrite_and_compile(module, inputs, rest, Report())

    return rewriting if side == "ours" else rest

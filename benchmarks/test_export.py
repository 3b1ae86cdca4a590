"""ONNX files of this project against those of ``torch.onnx.export``, both in ONNX Runtime and both
in OpenVINO, on the CPU, from an image to its logits.

PSPNet50's file is one for images of any size; it runs at semseg's. Other libraries' models are
rewritten by ``export_rewritten``, at their own size.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pspfast
from benchmarks.peers import export_onnx, run_onnxruntime, run_openvino
from benchmarks.semseg import SemsegPSPNet
from benchmarks.test_models import CLASSES, SIZE, build

PSPNET_SIZE = 473
# A round of either file takes seconds.
ROUNDS, WARMUP_ROUNDS = 7, 1

RUNTIMES: dict[str, tuple[str, Callable[[bytes, Tensor], Callable[[], np.ndarray]]]] = {
    "ONNX Runtime": ("onnxruntime", run_onnxruntime),
    "OpenVINO": ("openvino", run_openvino),
}


@pytest.fixture(scope="module", params=["PSPNet50", "UPerNet-ConvNeXt-T", "SegFormer-B2"])
def files(request, tmp_path_factory) -> tuple[bytes, bytes, Tensor]:
    """Ours, eager's own, and an image."""
    pytest.importorskip("onnxscript")
    path = Path(tmp_path_factory.mktemp("files"), "model.onnx")
    torch.manual_seed(0)
    if request.param == "PSPNet50":
        images = torch.randn(1, 3, PSPNET_SIZE, PSPNET_SIZE)
        model = pspfast.PSPNet(50, classes=CLASSES).eval()
        pspfast.export(model, path, size=(97, 97))
        plain: nn.Module = SemsegPSPNet(model.state_dict())
    else:
        images = torch.randn(1, 3, SIZE, SIZE)
        plain = build(request.param, torch.device("cpu")).eval()
        plain.to(memory_format=torch.contiguous_format)
        pspfast.export_rewritten(plain, [images], path)
    return path.read_bytes(), export_onnx(plain, images), images


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_image_to_logits(compare, files, runtime: str) -> None:
    package, run = RUNTIMES[runtime]
    pytest.importorskip(package)
    *both, images = files
    ours, theirs = (run(file, images) for file in both)
    expected = np.array(theirs())
    assert abs(np.array(ours()) - expected).max() <= 1e-4 * abs(expected).max()
    compare(ours, {"its file of torch.onnx.export": theirs}, ROUNDS, WARMUP_ROUNDS)

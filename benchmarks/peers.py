"""Runtimes that serve semseg's PSPNet, set up as their own users would for one image at a time.

``make_<name>(model, images, dtype)`` returns a function without arguments that computes the labels
``[N, H, W]`` of float32 images; what its runtime needs on disk is gone by then. Where the argmax is
faster inside a runtime's graph, it is there.
"""

from __future__ import annotations

import copy
import math
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

Labels = Callable[[], Tensor | np.ndarray]

FLOATS = (torch.float32,)
FLOATS_AND_BFLOATS = (torch.float32, torch.bfloat16)


class WithArgmax(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).argmax(1)


def fastest(candidates: Iterable[Labels]) -> Labels:
    """The one with the shortest of three runs, which they do in turns."""
    seconds = dict.fromkeys(candidates, math.inf)
    for _ in range(3):
        for candidate in seconds:
            start = time.perf_counter()
            candidate()
            seconds[candidate] = min(seconds[candidate], time.perf_counter() - start)
    return min(seconds, key=lambda candidate: seconds[candidate])


@lru_cache(maxsize=2)
def export_onnx(model: nn.Module, images: Tensor) -> bytes:
    """The model as a file of ONNX, BatchNorm folded; from ``images`` to ``out``."""
    program = torch.onnx.export(
        model, (images,), input_names=["images"], output_names=["out"], verbose=False
    )
    return program.model_proto.SerializeToString()


@lru_cache(maxsize=1)
def with_argmax(model: nn.Module) -> nn.Module:
    return WithArgmax(model).eval()


def make_eager(model: nn.Module, images: Tensor, dtype: torch.dtype) -> Labels:
    def in_layout(memory_format: torch.memory_format) -> Labels:
        # A copy, because `to` moves the layout of a module in place.
        laid_out = copy.deepcopy(model).to(dtype=dtype, memory_format=memory_format)
        x = images.contiguous(memory_format=memory_format)
        # As semseg does: for contiguous logits it takes a sixth of argmax's time.
        return lambda: laid_out(x.to(dtype)).max(1)[1]

    return fastest(map(in_layout, (torch.contiguous_format, torch.channels_last)))


def make_torch_compile(model: nn.Module, images: Tensor, dtype: torch.dtype) -> Labels:
    compiled = torch.compile(copy.deepcopy(with_argmax(model)).to(dtype))
    # Freezing folds BatchNorm and packs the weights, in the layout that it chooses.
    with torch._inductor.config.patch(freezing=True):
        compiled(images.to(dtype))
    return lambda: compiled(images.to(dtype))


def make_onnxruntime(model: nn.Module, images: Tensor, dtype: torch.dtype) -> Labels:
    return run_onnxruntime(export_onnx(with_argmax(model), images), images)


def run_onnxruntime(onnx: bytes, images: Tensor) -> Callable[[], np.ndarray]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Idle threads of its pool would spin on into the next peer's turn.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(onnx, options)
    feed = {session.get_inputs()[0].name: images.numpy()}
    return lambda: session.run(None, feed)[0]


def make_openvino(model: nn.Module, images: Tensor, dtype: torch.dtype) -> Labels:
    return run_openvino(export_onnx(with_argmax(model), images), images, dtype)


def run_openvino(
    onnx: bytes, images: Tensor, dtype: torch.dtype = torch.float32
) -> Callable[[], np.ndarray]:
    import openvino

    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(onnx),
        "CPU",
        {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "bf16" if dtype == torch.bfloat16 else "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        },
    )
    request = compiled.create_infer_request()
    feed = [images.numpy()]
    return lambda: request.infer(feed, share_inputs=True, share_outputs=True)[0]


def make_ncnn(model: nn.Module, images: Tensor, dtype: torch.dtype) -> Labels:
    import ncnn
    import pnnx

    net = ncnn.Net()
    net.opt.num_threads = torch.get_num_threads()
    net.opt.use_bf16_storage = dtype == torch.bfloat16
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    # On AVX-512 packing takes a sixth longer in float32, and a tenth less with bfloat16 storage.
    net.opt.use_packing_layout = dtype == torch.bfloat16
    # Without pools the system hands out fresh pages at every run.
    allocators = ncnn.UnlockedPoolAllocator(), ncnn.PoolAllocator()
    net.opt.blob_allocator, net.opt.workspace_allocator = allocators

    with tempfile.TemporaryDirectory() as folder:
        # From ONNX: TorchScript takes pnnx a minute.
        Path(folder, "model.onnx").write_bytes(export_onnx(model, images))
        shape = str(list(images.shape)).replace(" ", "")
        subprocess.run(
            [pnnx.EXEC_PATH, "model.onnx", f"inputshape={shape}", "fp16=0"],
            cwd=folder,
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        parameters, weights = f"{folder}/model.ncnn.param", f"{folder}/model.ncnn.bin"
        if net.load_param(parameters) or net.load_model(weights):
            raise RuntimeError("ncnn does not load what pnnx wrote")
    # A Mat does not own the memory of an array.
    mat = ncnn.Mat(images[0].numpy()).clone()

    def run() -> Tensor:
        extractor = net.create_extractor()
        extractor.input("in0", mat)
        _, logits = extractor.extract("out0")
        # Half of the time that numpy's argmax takes.
        return torch.from_numpy(np.array(logits, copy=False)).max(0)[1][None]

    # The net only has pointers to them.
    run.allocators = allocators
    return run


def make_mnn(model: nn.Module, images: Tensor, dtype: torch.dtype) -> Labels:
    # The converter itself: MNN.tools would install a package and report usage to its makers.
    import _tools
    from MNN import expr
    from MNN import nn as mnn

    with tempfile.TemporaryDirectory() as folder:
        onnx, path = Path(folder, "model.onnx"), Path(folder, "model.mnn")
        onnx.write_bytes(export_onnx(with_argmax(model), images))
        options = {"-f": "ONNX", "--modelFile": onnx, "--MNNModel": path, "--bizCode": "MNN"}
        _tools.mnnconvert(["mnnconvert", *(str(o) for option in options.items() for o in option)])
        manager = mnn.create_runtime_manager(
            ({"backend": "CPU", "numThread": torch.get_num_threads(), "precision": "normal"},)
        )
        net = mnn.load_module_from_file(str(path), ["images"], ["out"], runtime_manager=manager)

    def run() -> np.ndarray:
        x = expr.const(images.data_ptr(), list(images.shape), expr.NCHW)
        return net.forward(x).read()

    return run


@dataclass(frozen=True)
class Peer:
    make: Callable[[nn.Module, Tensor, torch.dtype], Labels]
    packages: tuple[str, ...] = ()
    dtypes: tuple[torch.dtype, ...] = FLOATS_AND_BFLOATS

    def missing(self) -> list[str]:
        return [package for package in self.packages if find_spec(package) is None]


# ONNX Runtime's and MNN's builds for x86 have no bfloat16 convolutions.
PEERS = {
    "eager": Peer(make_eager),
    "torch.compile": Peer(make_torch_compile),
    "ONNX Runtime": Peer(make_onnxruntime, ("onnx", "onnxscript", "onnxruntime"), FLOATS),
    "OpenVINO": Peer(make_openvino, ("onnx", "onnxscript", "openvino")),
    "ncnn": Peer(make_ncnn, ("onnx", "onnxscript", "pnnx", "ncnn")),
    "MNN": Peer(make_mnn, ("onnx", "onnxscript", "MNN"), FLOATS),
}

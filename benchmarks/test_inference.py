"""Inference of PSPNet50 on the CPU, from an image to its labels, against other runtimes."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pspfast
from benchmarks.peers import PEERS
from benchmarks.semseg import SemsegPSPNet

CLASSES, SIZE = 150, 473
# A round takes a second for each peer.
ROUNDS = 7


def make_images(batch: int, size: int) -> Tensor:
    coarse = 1.5 * torch.randn(batch, 3, size // 16, size // 16)
    return F.interpolate(coarse, (size, size), mode="bilinear")


@pytest.fixture(scope="module")
def images() -> Tensor:
    torch.manual_seed(1)
    return make_images(1, SIZE)


@pytest.fixture(scope="module")
def model() -> pspfast.PSPNet:
    """Random weights, as well conditioned as trained ones: small residual branches, and the
    statistics of images in BatchNorm."""
    torch.manual_seed(0)
    model = pspfast.PSPNet(50, classes=CLASSES).eval()
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train().momentum = None  # the mean over all batches
            if name.endswith("bn3"):
                nn.init.constant_(module.weight, 0.1)
    with torch.inference_mode():
        for _ in range(4):
            model(make_images(4, 97), upsample=False)
    return model.eval()


@pytest.fixture(scope="module")
def semseg(model) -> SemsegPSPNet:
    return SemsegPSPNet(model.state_dict())


def mistakes(labels: object, expected: Tensor) -> float:
    return (torch.as_tensor(labels) != expected).double().mean().item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.inference_mode()
def test_image_to_labels(compare, record_row, model, semseg, images, dtype) -> None:
    optimized = pspfast.optimize_for_inference(model, dtype=dtype)
    peers = {}
    for name, peer in PEERS.items():
        if missing := peer.missing():
            record_row(f"{name} left out: {', '.join(missing)} not installed")
        elif dtype in peer.dtypes:
            peers[name] = peer.make(semseg, images, dtype)

    expected = semseg(images).argmax(1)
    allowed = 0.001 if dtype == torch.float32 else 2 * mistakes(peers["eager"](), expected)
    assert expected.unique().numel() > CLASSES // 4
    assert mistakes(optimized.predict(images), expected) <= allowed
    for name, labels in peers.items():
        assert mistakes(labels(), expected) <= allowed, name
    compare(lambda: optimized.predict(images), peers, ROUNDS)

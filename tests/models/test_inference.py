import copy
import io
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pspfast import PSPNet, backend, optimize_for_inference

CLASSES = 7
CONFIGURATIONS: list[dict[str, Any]] = [
    {"layers": 18},
    {"layers": 50},
    {"layers": 50, "stem": "7x7", "dilation": "contracted", "align_corners": False},
    {"layers": 18, "stem": "deep_narrow", "use_ppm": False},
    {"layers": 18, "bins": (1, 4), "zoom_factor": 2},
    {"layers": 18, "zoom_factor": 1},
    # Narrower than Winograd's algorithm is good for.
    {"layers": 18, "head_channels": 8},
]


def make_model(**arguments: Any) -> PSPNet:
    """With the statistics of its own maps in BatchNorm."""
    model = PSPNet(classes=CLASSES, **arguments)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    with torch.no_grad():
        model(torch.randn(4, 3, 65, 65), torch.zeros(4, *model_size(model, 65)).long())
    return model.eval()


def model_size(model: PSPNet, size: int) -> tuple[int, int]:
    return ((size - 1) * model.zoom_factor // 8 + 1,) * 2


def error(got: Tensor, exact: Tensor) -> float:
    return ((got.double() - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("size", [(65, 81), (70, 59)])
@pytest.mark.parametrize("arguments", CONFIGURATIONS, ids=str)
def test_equals_the_model(arguments: dict[str, Any], size: tuple[int, int]) -> None:
    model, images = make_model(**arguments), torch.randn(2, 3, *size)
    frozen = optimize_for_inference(model)
    before = images.clone()
    exact = copy.deepcopy(model).double()(images.double())
    got = frozen(images)
    assert got.shape == exact.shape
    assert got.dtype == torch.float32
    # The error of each of some fifty layers is 1e-6.
    assert error(got, exact) <= 5e-5
    assert torch.equal(images, before)
    assert (frozen.predict(images) == model.predict(images)).double().mean() >= 0.999
    torch.testing.assert_close(
        frozen(images, upsample=False), model(images, upsample=False), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_other_dtypes(dtype: torch.dtype) -> None:
    """Errors are at most twice those of the model in the same dtype."""
    model, images = make_model(layers=18), torch.randn(1, 3, 65, 65)
    exact = copy.deepcopy(model).double()(images.double())
    frozen = optimize_for_inference(model, dtype)
    got = frozen(images)
    assert got.dtype == dtype
    eager = copy.deepcopy(model).to(dtype)
    with backend("reference"):
        assert error(got, exact) <= 2 * error(eager(images.to(dtype)), exact) + 1e-14


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_memory_formats(memory_format: torch.memory_format) -> None:
    model, images = make_model(layers=18), torch.randn(1, 3, 65, 65)
    frozen = optimize_for_inference(model, memory_format=memory_format)
    maps: list[Tensor] = []
    for stage in (frozen.layer0, frozen.layer2, frozen.layer4):
        stage.register_forward_hook(lambda stage, inputs, output: maps.extend([*inputs, output]))
    assert error(frozen(images), model(images).double()) <= 5e-5
    channels_last = images.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(frozen(channels_last), frozen(images))
    assert len(maps) == 18
    assert all(m.is_contiguous(memory_format=memory_format) for m in maps)


def test_reference_backend() -> None:
    model, images = make_model(layers=18), torch.randn(1, 3, 65, 65)
    with backend("reference"):
        frozen = optimize_for_inference(model)
        assert error(frozen(images), model(images).double()) <= 5e-5


def test_the_model_is_left_as_it_is() -> None:
    model = make_model(layers=18).train()
    before = copy.deepcopy(model.state_dict())
    frozen = optimize_for_inference(model)
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad for p in model.parameters())
    with torch.no_grad():
        expected = frozen(torch.ones(1, 3, 33, 33))
        for parameter in model.parameters():
            parameter.zero_()
    # It shares no memory with the model.
    assert torch.equal(frozen(torch.ones(1, 3, 33, 33)), expected)
    model.load_state_dict(before)
    model(torch.randn(2, 3, 33, 33), torch.zeros(2, 33, 33).long())[1].backward()


def test_it_is_not_trained() -> None:
    frozen = optimize_for_inference(make_model(layers=18))
    with pytest.raises(RuntimeError, match=r"^InferencePSPNet: train: expected mode False"):
        frozen.train()
    assert not frozen.train(False).training
    assert not list(frozen.parameters())
    images = torch.randn(1, 3, 33, 33, requires_grad=False)
    assert not frozen(images).requires_grad


def test_state_dict() -> None:
    images = torch.randn(1, 3, 33, 33)
    frozen = optimize_for_inference(make_model(layers=18))
    other = optimize_for_inference(make_model(layers=18))
    assert not torch.equal(frozen(images), other(images))
    other.load_state_dict(frozen.state_dict())
    assert torch.equal(frozen(images), other(images))


def test_saved_and_loaded() -> None:
    images = torch.randn(1, 3, 33, 33)
    frozen = optimize_for_inference(make_model(layers=18), torch.bfloat16)
    file = io.BytesIO()
    torch.save(frozen, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert torch.equal(loaded(images), frozen(images))
    assert torch.equal(loaded.predict(images), frozen.predict(images))


def test_threads() -> None:
    frozen = optimize_for_inference(make_model(layers=18))
    batches = [torch.randn(1, 3, 33 + 8 * i, 41) for i in range(8)]
    expected = [frozen(images) for images in batches]
    with ThreadPoolExecutor(4) as threads:
        for got, wanted in zip(threads.map(frozen, batches), expected, strict=True):
            assert torch.equal(got, wanted)


@pytest.mark.parametrize(
    ("layers", "dtype"), [(18, torch.float32), (18, torch.bfloat16), (50, torch.float32)], ids=str
)
def test_compiled(layers: int, dtype: torch.dtype) -> None:
    frozen = optimize_for_inference(make_model(layers=layers), dtype)
    images = torch.randn(1, 3, 33, 33)
    compiled = torch.compile(frozen, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(images), frozen(images))


def test_errors() -> None:
    model = make_model(layers=18)
    with pytest.raises(TypeError, match=r"^optimize_for_inference: model: .* got Linear"):
        optimize_for_inference(nn.Linear(1, 1))
    frozen = optimize_for_inference(model)
    with pytest.raises(TypeError, match=r"^optimize_for_inference: model: .* got InferencePSPNet"):
        optimize_for_inference(frozen)
    with pytest.raises(TypeError, match=r"^optimize_for_inference: dtype: .* got torch.int8"):
        optimize_for_inference(model, torch.int8)
    with pytest.raises(ValueError, match=r"^PSPNet: x: expected \[N, 3, H, W\], got \(1, 4"):
        frozen(torch.zeros(1, 4, 8, 8))

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from functional_pspnet import FunctionalPSPNet
from randomised import randomised, relative_difference
from torch import Tensor, nn

from pspfast import PSPNet

# The smallest network, for what does not depend on size.
TINY = {"layers": 18, "stem": "7x7", "head_channels": 8, "aux_channels": 8, "dropout": 0.0}


def double(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.double() if v.is_floating_point() else v for k, v in state.items()}


@pytest.mark.parametrize(("layers", "keys"), [(50, 370), (101, 676), (152, 982)])
def test_keys_and_shapes_are_semsegs(layers: int, keys: int) -> None:
    with torch.device("meta"):
        model = PSPNet(layers, classes=150)
    state = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    assert len(state) == keys
    blocks = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}[layers]
    expected: dict[str, tuple[int, ...]] = {}

    def conv_bn(conv: str, bn: str, out: int, in_: int, kernel: int) -> None:
        expected[f"{conv}.weight"] = (out, in_, kernel, kernel)
        for name in ("weight", "bias", "running_mean", "running_var"):
            expected[f"{bn}.{name}"] = (out,)
        expected[f"{bn}.num_batches_tracked"] = ()

    for i, (out, in_) in enumerate([(64, 3), (64, 64), (128, 64)]):
        conv_bn(f"layer0.{3 * i}", f"layer0.{3 * i + 1}", out, in_, 3)
    in_ = 128
    for stage, (count, planes) in enumerate(zip(blocks, (64, 128, 256, 512), strict=True), start=1):
        for block in range(count):
            prefix = f"layer{stage}.{block}"
            conv_bn(f"{prefix}.conv1", f"{prefix}.bn1", planes, in_, 1)
            conv_bn(f"{prefix}.conv2", f"{prefix}.bn2", planes, planes, 3)
            conv_bn(f"{prefix}.conv3", f"{prefix}.bn3", 4 * planes, planes, 1)
            if block == 0:
                down = f"{prefix}.downsample"
                conv_bn(f"{down}.0", f"{down}.1", 4 * planes, in_, 1)
            in_ = 4 * planes
    for i in range(4):
        conv_bn(f"ppm.features.{i}.1", f"ppm.features.{i}.2", 512, 2048, 1)
    for name, in_, width in (("cls", 4096, 512), ("aux", 1024, 256)):
        conv_bn(f"{name}.0", f"{name}.1", width, in_, 3)
        expected |= {f"{name}.4.weight": (150, width, 1, 1), f"{name}.4.bias": (150,)}
    assert state == expected


@pytest.mark.parametrize(
    ("layers", "classes", "parameters"),
    [(50, 150, 49_180_908), (50, 21, 49_081_578), (50, 19, 49_080_038), (101, 150, 68_173_036)],
)
def test_parameter_count(layers: int, classes: int, parameters: int) -> None:
    with torch.device("meta"):
        model = PSPNet(layers, classes=classes)
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("use_ppm", [True, False])
def test_resnet50_gives_semsegs_numbers(use_ppm: bool, memory_format: torch.memory_format) -> None:
    model = randomised(PSPNet(50, classes=7, use_ppm=use_ppm, dropout=0.0))
    model = model.to(memory_format=memory_format)
    x = torch.randn(2, 3, 57, 73).contiguous(memory_format=memory_format)
    oracle = FunctionalPSPNet(double(model.state_dict()), use_ppm=use_ppm)
    with torch.no_grad():
        assert relative_difference(model.eval()(x), oracle(x.double())[0]) < 1e-5


@pytest.mark.parametrize("zoom_factor", [1, 2, 4, 8])
@pytest.mark.parametrize("use_ppm", [True, False])
def test_training_gives_semsegs_numbers(use_ppm: bool, zoom_factor: int) -> None:
    model = randomised(PSPNet(classes=5, use_ppm=use_ppm, zoom_factor=zoom_factor, **TINY))
    x = torch.randn(2, 3, 49, 65)
    y = torch.randint(0, 5, (2, 6 * zoom_factor + 1, 8 * zoom_factor + 1))
    y[0, :2] = 255
    oracle = FunctionalPSPNet(
        double(model.state_dict()), True, use_ppm=use_ppm, zoom_factor=zoom_factor
    )
    labels, main_loss, aux_loss = model.train()(x, y)
    logits, aux_logits = oracle(x.double())
    assert relative_difference(main_loss, F.cross_entropy(logits, y, ignore_index=255)) < 1e-5
    assert relative_difference(aux_loss, F.cross_entropy(aux_logits, y, ignore_index=255)) < 1e-5
    assert labels.shape == y.shape
    assert (labels == logits.argmax(1)).double().mean() > 0.999
    main_loss.backward()

    model = randomised(model).eval()
    oracle = FunctionalPSPNet(double(model.state_dict()), use_ppm=use_ppm, zoom_factor=zoom_factor)
    got = model(x)
    assert got.shape[2:] == y.shape[1:]
    assert relative_difference(got, oracle(x.double())[0]) < 1e-5


@pytest.mark.parametrize(
    "options",
    [
        {"layers": 34},
        {"stem": "deep"},
        {"stem": "deep_narrow"},
        {"dilation": "contracted"},
        {"layers": 50, "dilation": "contracted"},
        {"align_corners": False},
        {"bins": (1, 4)},
        {"head_channels": 24, "aux_channels": 12},
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [(41, 57), (40, 50), (9, 131)])
def test_variants_at_any_size(options: dict[str, Any], size: tuple[int, int]) -> None:
    model = randomised(PSPNet(classes=3, **{**TINY, **options})).eval()
    x = torch.randn(1, 3, *size)
    oracle = FunctionalPSPNet(
        double(model.state_dict()),
        bins=options.get("bins", (1, 2, 3, 6)),
        align_corners=options.get("align_corners", True),
        contracted=options.get("dilation") == "contracted",
    )
    with torch.no_grad():
        got = model(x)
        assert got.shape == (1, 3, *size)
        assert relative_difference(got, oracle(x.double())[0]) < 1e-5


@pytest.mark.parametrize("zoom_factor", [1, 8])
def test_features_stay_on_their_pixels_at_any_size(zoom_factor: int) -> None:
    """The logits of an image are those of the image on a larger canvas of the mean colour."""
    model = randomised(PSPNet(classes=3, zoom_factor=zoom_factor, **TINY)).eval()
    image = torch.randn(1, 3, 42, 55)
    canvas = F.pad(image, (0, 2, 0, 7))
    logits, expected = model(image), model(canvas)
    assert logits.shape[2:] == ((42, 55) if zoom_factor == 8 else (6, 7))
    torch.testing.assert_close(logits, expected[:, :, : logits.shape[2], : logits.shape[3]])


def test_gradients_reach_every_parameter() -> None:
    model = PSPNet(classes=3, **TINY)
    _, main_loss, aux_loss = model(torch.randn(2, 3, 41, 41), torch.randint(0, 3, (2, 41, 41)))
    (main_loss + 0.4 * aux_loss).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_any_criterion() -> None:
    class OneMinusProbability(nn.Module):
        def forward(self, logits: Tensor, target: Tensor) -> Tensor:
            return 1 - logits.softmax(1).gather(1, target[:, None].remainder(3)).mean()

    model = PSPNet(classes=3, criterion=OneMinusProbability(), **TINY)
    y = torch.full((2, 33, 33), 77)  # means whatever the criterion takes it to mean
    _, main_loss, _ = model(torch.randn(2, 3, 33, 33), y)
    assert 0 < main_loss < 1

    soft = PSPNet(classes=3, criterion=nn.CrossEntropyLoss(), **TINY)
    _, main_loss, _ = soft(torch.randn(2, 3, 33, 33), torch.full((2, 3, 33, 33), 1 / 3))
    assert main_loss > 0


class OrdinaryCrossEntropy(nn.CrossEntropyLoss):
    """The same loss, of a class that PSPNet does not know."""


@pytest.mark.parametrize("size", [(41, 57), (40, 50)])
@pytest.mark.parametrize(
    "options",
    [
        {"zoom_factor": 8},
        {"zoom_factor": 4},
        {"zoom_factor": 1},
        {"align_corners": False},
        {"use_ppm": False},
    ],
    ids=str,
)
def test_fused_loss_equals_the_criterion(options: dict[str, Any], size: tuple[int, int]) -> None:
    criterion = {"ignore_index": 2, "label_smoothing": 0.1, "weight": torch.tensor([1, 2, 1, 0.5])}
    model = randomised(PSPNet(classes=4, **{**TINY, **options})).double()
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    zoom = options.get("zoom_factor", 8)
    y = torch.randint(0, 4, (2, *((s - 1) * zoom // 8 + 1 for s in size)))
    results = []
    for loss in (nn.CrossEntropyLoss(**criterion), OrdinaryCrossEntropy(**criterion)):
        model.criterion = loss.double()
        model.zero_grad()
        labels, main_loss, aux_loss = model(x, y)
        (main_loss + 0.4 * aux_loss).backward()
        grads = [p.grad.clone() for p in model.parameters()]
        results.append((labels, main_loss.detach(), aux_loss.detach(), *grads))
    for ours, expected in zip(*results, strict=True):
        assert ours.dtype == expected.dtype
        torch.testing.assert_close(ours, expected, rtol=1e-8, atol=1e-10)


def test_training_makes_no_logits_of_the_size_of_the_image() -> None:
    def largest_allocation(criterion: nn.Module) -> int:
        model = PSPNet(classes=150, criterion=criterion, **TINY)
        x, y = torch.randn(2, 3, 121, 121), torch.randint(0, 150, (2, 121, 121))
        with torch.profiler.profile(profile_memory=True) as profiler:
            _, main_loss, aux_loss = model(x, y)
            (main_loss + aux_loss).backward()
        events = profiler.profiler.kineto_results.events()
        return max(event.nbytes() for event in events if event.name() == "[memory]")

    logits = 4 * 2 * 150 * 121 * 121
    assert largest_allocation(nn.CrossEntropyLoss()) < logits
    assert largest_allocation(OrdinaryCrossEntropy()) >= logits


def test_logits_at_the_resolution_of_the_features() -> None:
    model = randomised(PSPNet(classes=3, **TINY)).eval()
    x = torch.randn(1, 3, 41, 57)
    logits = model(x, upsample=False)
    assert logits.shape == (1, 3, 6, 8)
    full = F.interpolate(logits, (41, 57), mode="bilinear", align_corners=True)
    assert torch.equal(model(x), full)


@pytest.mark.parametrize("zoom_factor", [1, 8])
def test_predict_keeps_size_and_modes(zoom_factor: int) -> None:
    model = randomised(PSPNet(classes=3, zoom_factor=zoom_factor, **TINY)).train()
    model.layer1.eval()  # frozen
    images = torch.randn(2, 3, 37, 50)
    labels = model.predict(images)
    assert labels.shape == (2, 37, 50)
    assert labels.dtype == torch.int64
    assert model.training
    assert not model.layer1.training
    assert not model.layer1[0].bn1.training
    logits = model.eval()(F.pad(images, (0, 7, 0, 4)))
    logits = F.interpolate(logits, (41, 57), mode="bilinear", align_corners=True)
    assert torch.equal(labels, logits[:, :, :37, :50].argmax(1))


def test_compiles_without_graph_break() -> None:
    model = randomised(PSPNet(classes=3, **TINY)).eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = torch.randn(1, 3, 33, 41)
    torch.testing.assert_close(compiled(x), model(x))

    model.train()
    y = torch.randint(0, 3, (2, 33, 41))
    x = torch.randn(2, 3, 33, 41)
    _, expected, _ = model(x, y)
    _, loss, _ = compiled(x, y)
    torch.testing.assert_close(loss, expected)

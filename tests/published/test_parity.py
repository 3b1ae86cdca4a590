"""Weights that other packages saved, against those packages' own networks."""

from pathlib import Path

import pytest
import torch
from functional_pspnet import FunctionalPSPNet
from original_networks import CsailNetwork, mmseg_network, save_as_mmseg
from randomised import randomised, relative_difference

from pspfast import PSPNet

SIZES = [(97, 65), (73, 121), (89, 89)]
ANY_SIZES = [(97, 65), (70, 123), (64, 96)]

# Family, version of the file and sizes: every depth, stem, dilation convention and output stride.
MMSEG = [
    ("pspnet_r18-d8_4xb2-80k_cityscapes-512x1024", "1.x", ANY_SIZES),
    ("pspnet_r18b-d8_4xb2-80k_cityscapes-769x769", "0.x", SIZES),
    ("pspnet_r50-d8_4xb4-80k_ade20k-512x512", "0.x", ANY_SIZES),
    ("pspnet_r50b-d32_4xb2-80k_cityscapes-512x1024", "1.x", ANY_SIZES),
    ("pspnet_r101-d8_4xb2-80k_cityscapes-769x769", "1.x", SIZES[:1]),
]


@pytest.mark.parametrize(("name", "version", "sizes"), MMSEG, ids=lambda v: str(v)[:24])
@torch.no_grad()
def test_mmsegmentation(
    tmp_path: Path, name: str, version: str, sizes: list[tuple[int, int]]
) -> None:
    network, text = mmseg_network(name)
    classes = network.decode_head.num_classes
    path = tmp_path / "mmseg.pth"
    save_as_mmseg(network, path, version, text, classes)
    model = PSPNet.from_pretrained(path)
    assert model.class_names == tuple(f"name {i}" for i in range(classes))
    assert model.palette[1] == (1, 2, 7)
    for size in sizes:
        images = torch.randn(1, 3, *size)
        expected = network.encode_decode(images, [{"img_shape": size, "ori_shape": size}])
        assert relative_difference(model(images), expected) <= 1e-5
        labels = model.predict(images) == expected.argmax(1)
        assert labels.double().mean() >= 0.9999
    # The auxiliary head is no part of evaluation.
    maps = network.backbone(images)
    aux = network.auxiliary_head(maps)
    assert relative_difference(model.aux(maps[2]), aux) <= 1e-5


@pytest.mark.parametrize(("layers", "deep_supervision"), [(18, True), (50, True), (50, False)])
@torch.no_grad()
def test_csail(tmp_path: Path, layers: int, deep_supervision: bool) -> None:
    network = randomised(CsailNetwork(layers, deep_supervision)).eval()
    # Probabilities of a fresh classifier differ by less than they are rounded.
    network.decoder.conv_last[4].weight.mul_(30)
    paths = [tmp_path / "encoder_epoch_20.pth", tmp_path / "decoder_epoch_20.pth"]
    for part, path in zip((network.encoder, network.decoder), paths, strict=True):
        # Its BatchNorm over several GPUs saves three more buffers, and no counter.
        state = {k: v for k, v in part.state_dict().items() if "num_batches" not in k}
        means = [k for k in state if k.endswith("running_mean")]
        extra = {k.replace("running_mean", "_tmp_running_mean"): state[k] for k in means}
        torch.save(state | extra | {"bn1._running_iter": torch.ones(1)}, path)
    model = PSPNet.from_pretrained(paths[::-1])
    assert (model.aux is not None) == deep_supervision
    assert model.class_names is not None and model.class_names[0] == "wall"
    for size in ANY_SIZES:
        images = torch.randn(1, 3, *size)
        got = network.log_probabilities(images)
        expected, aux = got if deep_supervision else (got, None)
        ours = model(images, upsample=False).log_softmax(1)
        assert relative_difference(ours, expected) <= 1e-5
        assert (model.predict(images) == network.labels(images)).double().mean() >= 0.9999
    if model.aux is not None:
        features = model.layer3(model.layer2(model.layer1(model.layer0(images))))
        assert relative_difference(model.aux(features).log_softmax(1), aux) <= 1e-5


@pytest.mark.parametrize("layers", [50, 101])
@torch.no_grad()
def test_semseg(tmp_path: Path, layers: int) -> None:
    source = randomised(PSPNet(layers, classes=19)).eval()
    state = {f"module.{k}": v for k, v in source.state_dict().items()}
    optimizer = torch.optim.SGD(source.parameters(), lr=0.1, momentum=0.9)
    path = tmp_path / "train_epoch_200.pth"
    torch.save({"epoch": 200, "state_dict": state, "optimizer": optimizer.state_dict()}, path)
    model = PSPNet.from_pretrained(path)
    assert model.class_names is not None and model.class_names[0] == "road"
    oracle = FunctionalPSPNet({k: v.double() for k, v in source.state_dict().items()})
    for size in SIZES if layers == 50 else SIZES[:1]:
        images = torch.randn(1, 3, *size)
        expected = oracle(images.double())[0]
        assert relative_difference(model(images), expected) <= 1e-5
        labels = model.predict(images) == expected.argmax(1)
        assert labels.double().mean() >= 0.9999


@pytest.mark.parametrize(
    ("package", "name", "stem"),
    [
        ("torchvision", "resnet34", "7x7"),
        ("timm", "resnet18", "7x7"),
        ("timm", "resnet50c", "deep_narrow"),
        ("timm", "resnet50s", "deep"),
    ],
)
@torch.no_grad()
def test_classifiers_as_backbones(tmp_path: Path, package: str, name: str, stem: str) -> None:
    reason = "the published extra is not installed"
    if package == "timm":
        network = pytest.importorskip("timm", reason=reason).create_model(name, pretrained=False)
    else:
        network = getattr(pytest.importorskip("torchvision.models", reason=reason), name)()
    randomised(network).eval()
    path = tmp_path / "classifier.pth"
    torch.save(network.state_dict(), path)
    with pytest.warns(UserWarning, match=r"classifier\.pth is a backbone: the heads start anew"):
        model = PSPNet.from_pretrained(path, classes=5, head_channels=8)
    assert (model.options["stem"], model.classes) == (stem, 5)
    images = torch.randn(1, 3, 65, 97)
    # layer2 is the last that strides in both.
    x = network.maxpool(
        (network.relu if hasattr(network, "relu") else network.act1)(
            network.bn1(network.conv1(images))
        )
    )
    expected = network.layer2(network.layer1(x))
    got = model.layer2(model.layer1(model.layer0(images)))
    assert relative_difference(got, expected) <= 1e-5
    for stage in ("layer3", "layer4"):
        ours, theirs = getattr(model, stage).state_dict(), getattr(network, stage).state_dict()
        assert all(torch.equal(ours[key], value) for key, value in theirs.items())
    again = PSPNet(model.options["layers"], stem=stem, pretrained=path, classes=2, head_channels=8)
    assert torch.equal(again.layer0[0].weight, model.layer0[0].weight)

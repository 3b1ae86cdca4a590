from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from pspfast import PSPNet

SMALL = {"classes": 3, "head_channels": 8, "aux_channels": 8}


def semseg_classifier(model: PSPNet) -> dict[str, Tensor]:
    """The backbone of `model` as a file in the layout of semseg's ImageNet classifiers."""
    names = {"0": "conv1", "1": "bn1", "3": "conv2", "4": "bn2", "6": "conv3", "7": "bn3"}
    weights = {"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}
    for key, value in model.state_dict().items():
        module, _, rest = key.partition(".")
        if module == "layer0":
            index, _, parameter = rest.partition(".")
            weights[f"{names[index]}.{parameter}"] = value
        elif module.startswith("layer"):
            weights[key] = value
    return weights


def assert_same_backbone(a: PSPNet, b: PSPNet) -> None:
    for stage in ("layer0", "layer1", "layer2", "layer3", "layer4"):
        for x, y in zip(
            getattr(a, stage).state_dict().values(),
            getattr(b, stage).state_dict().values(),
            strict=True,
        ):
            assert torch.equal(x, y)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_semseg_layout(tmp_path: Path, suffix: str, prefix: str) -> None:
    source = PSPNet(50, **SMALL)
    weights = {prefix + k: v for k, v in semseg_classifier(source).items()}
    path = tmp_path / f"resnet50_v2{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(weights, path)
    assert_same_backbone(PSPNet(50, pretrained=path, **SMALL), source)


@pytest.mark.parametrize("layers", [18, 50])
def test_torchvision_layout(tmp_path: Path, layers: int) -> None:
    models = pytest.importorskip("torchvision.models")
    classifier = getattr(models, f"resnet{layers}")()
    path = tmp_path / "resnet.pth"
    # Files from before the counter existed load too.
    state = {k: v for k, v in classifier.state_dict().items() if "num_batches" not in k}
    torch.save(state, path)
    model = PSPNet(layers, stem="7x7", pretrained=str(path), **SMALL)
    assert torch.equal(model.layer0[0].weight, classifier.conv1.weight)
    assert torch.equal(model.layer0[1].running_var, classifier.bn1.running_var)
    for stage in ("layer1", "layer4"):
        ours, theirs = getattr(model, stage).state_dict(), getattr(classifier, stage).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_wrong_layout_names_the_keys(tmp_path: Path) -> None:
    models = pytest.importorskip("torchvision.models")
    path = tmp_path / "resnet50.pth"
    torch.save(models.resnet50().state_dict(), path)
    with pytest.raises(ValueError, match="does not fit this backbone") as error:
        PSPNet(50, stem="deep", pretrained=path, **SMALL)
    message = str(error.value)
    assert "layer0.3.weight" in message
    assert "layer0.0.weight: expected (64, 3, 3, 3), got (64, 3, 7, 7)" in message

    with pytest.raises(ValueError, match=r"unexpected keys: layer1\.0\.conv3\.weight"):
        PSPNet(18, stem="7x7", pretrained=path, **SMALL)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected a file of weights, got .*none\.pth"):
        PSPNet(18, pretrained=tmp_path / "none.pth", **SMALL)

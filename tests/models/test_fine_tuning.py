"""Labels that were predicted as targets, classifiers that were replaced, gradients for images."""

import copy
import pickle

import pytest
import torch
from torch import nn

from pspfast import PSPNet, optimize_for_inference
from pspfast.models.multi_scale import WholeImage


def small(classes: int = 3, **options: object) -> PSPNet:
    options = {"head_channels": 8, "aux_channels": 8, **options}
    return PSPNet(18, classes=classes, stem="7x7", dropout=0.0, **options)


@pytest.mark.parametrize("side", [65, 60])
@pytest.mark.parametrize("by_scales", [False, True])
def test_predicted_labels_are_targets(side: int, by_scales: bool) -> None:
    model, x = small(), torch.randn(2, 3, side, side)
    labels = WholeImage(model=model.eval()).predict(x) if by_scales else model.predict(x)
    assert labels.dtype == torch.int64
    assert not labels.is_inference()
    model.train()
    copied = torch.tensor(labels.tolist())
    expected = copy.deepcopy(model)(x, copied)[1]
    _, main, aux = model(x, labels)
    (main + 0.4 * aux).backward()
    torch.testing.assert_close(main, expected)


@pytest.mark.parametrize("use_ppm", [True, False])
def test_replaced_classifier_has_its_own_classes(use_ppm: bool) -> None:
    model = small(use_ppm=use_ppm)
    model.cls[4], model.aux[4] = nn.Conv2d(8, 5, 1), nn.Conv2d(8, 5, 1)
    assert model.classes == 5
    x, target = torch.randn(2, 3, 65, 65), torch.full((2, 65, 65), 4)
    assert model(x, target)[1].isfinite()
    with pytest.raises(ValueError, match=r"^PSPNet: y: expected labels 0 to 4 or 255"):
        model(x, target + 1)
    fast = optimize_for_inference(model)
    assert fast.classes == 5
    assert fast(x).shape == (2, 5, 65, 65)


def test_gradients_of_images_are_refused_by_the_optimised_model() -> None:
    fast, x = optimize_for_inference(small()), torch.randn(1, 3, 65, 65, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"^InferencePSPNet: x: expected images that require no"):
        fast(x)
    with torch.no_grad():
        assert torch.equal(fast(x), fast(x.detach()))
    assert torch.equal(fast.predict(x), fast.predict(x.detach()))


def test_copies_and_pickles() -> None:
    model, x = small().eval(), torch.randn(1, 3, 65, 65)
    for module in (model, optimize_for_inference(model)):
        with torch.no_grad():
            expected = module(x)
            for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
                assert torch.equal(copied(x), expected)
                assert copied.classes == 3

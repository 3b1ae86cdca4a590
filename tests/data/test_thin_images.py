"""Images of one row or column are blurred and trained on like others."""

import numpy as np
import pytest
import torch
from torchvision import tv_tensors

from pspfast.data import TrainTransform
from pspfast.data.transforms import BLUR_SIGMA, _blur

SIZES = [(1, 1), (1, 9), (2, 1), (2, 2), (3, 2), (2, 40), (3, 3), (7, 5)]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_blur_reflects_as_often_as_it_takes(size: tuple[int, int]) -> None:
    """As numpy pads, whatever the size."""
    pixels = np.random.default_rng(0).integers(0, 256, (3, *size), dtype=np.uint8)
    weights = np.exp(-(np.arange(-2, 3) ** 2) / (2 * BLUR_SIGMA**2))
    weights /= weights.sum()
    padded = np.pad(pixels.astype(float), ((0, 0), (2, 2), (2, 2)), mode="reflect")
    rows = sum(w * padded[:, i : i + size[0]] for i, w in enumerate(weights))
    expected = sum(w * rows[:, :, i : i + size[1]] for i, w in enumerate(weights))
    got = _blur(tv_tensors.Image(torch.from_numpy(pixels))).numpy()
    assert got.shape == pixels.shape
    assert np.abs(got - expected).max() <= 0.51


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_items_have_the_crops_size(size: tuple[int, int]) -> None:
    transform = TrainTransform((33, 33), scale=(0.5, 2.0), blur=1.0)
    for seed in range(10):
        torch.manual_seed(seed)
        image = tv_tensors.Image(torch.full((3, *size), 9, dtype=torch.uint8))
        label = tv_tensors.Mask(torch.zeros(size, dtype=torch.uint8))
        pixels, ids = transform(image, label)
        assert pixels.shape == (3, 33, 33) and ids.shape == (33, 33)
        assert pixels.isfinite().all()

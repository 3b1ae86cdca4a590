"""Labels of real images by a trained model."""

from pathlib import Path

import torch
from torch.utils.data import DataLoader

from pspfast import backend, optimize_for_inference
from pspfast.data import EvalTransform, SegmentationDataset, list_file_samples
from tools.camvid_model import train_for_an_epoch


def test_labels_equal_those_of_plain_pytorch(camvid: Path) -> None:
    model, losses = train_for_an_epoch(camvid, torch.device("cpu"))
    assert sum(losses[-5:]) < 3 * losses[0]

    frozen = optimize_for_inference(model)
    val = SegmentationDataset(list_file_samples(camvid / "val.txt")[::5][:20], EvalTransform())
    wrong = pixels = 0
    for image, _ in DataLoader(val):
        with backend("reference"):
            expected = model.predict(image)
        wrong += (frozen.predict(image) != expected).sum().item()
        pixels += expected.numel()
    assert pixels == 20 * 360 * 480
    assert wrong <= 1e-4 * pixels

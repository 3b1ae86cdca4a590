"""Labels of real images by a trained model."""

from pathlib import Path

import torch
from torch.utils.data import DataLoader

from pspfast import PSPNet, backend, optimize_for_inference
from pspfast.data import EvalTransform, SegmentationDataset, TrainTransform, list_file_samples


def test_labels_equal_those_of_plain_pytorch(camvid: Path) -> None:
    model = PSPNet(18, classes=11, stem="7x7")
    train = SegmentationDataset(
        list_file_samples(camvid / "train.txt"), TrainTransform((161, 209), scale=(0.5, 1.0))
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    losses = []
    for images, labels in DataLoader(train, batch_size=8, shuffle=True):
        _, main_loss, aux_loss = model(images, labels)
        optimizer.zero_grad()
        (main_loss + 0.4 * aux_loss).backward()
        optimizer.step()
        losses.append(main_loss.item())
    assert sum(losses[-5:]) < 3 * losses[0]

    model.eval()
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

"""A model of CamVid that tests and benchmarks evaluate."""

from pathlib import Path

import torch
from torch.utils.data import DataLoader

from pspfast import PSPNet
from pspfast.data import SegmentationDataset, TrainTransform, list_file_samples


def train_for_an_epoch(folder: Path, device: torch.device) -> tuple[PSPNet, list[float]]:
    """A PSPNet18 for evaluation, at half the images' size, and the main losses of its steps: with
    random weights hardly any pixel would be decided."""
    torch.manual_seed(0)
    model = PSPNet(18, classes=11, stem="7x7").to(device)
    transform = TrainTransform((97, 129), scale=(0.25, 0.75), rotate=0, blur=0)
    train = SegmentationDataset(list_file_samples(folder / "train.txt"), transform)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    losses = []
    for images, labels in DataLoader(train, batch_size=4, shuffle=True, drop_last=True):
        _, main_loss, aux_loss = model(images.to(device), labels.to(device))
        optimizer.zero_grad()
        (main_loss + 0.4 * aux_loss).backward()
        optimizer.step()
        losses.append(main_loss.item())
    return model.eval(), losses

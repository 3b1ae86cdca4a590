"""Segmentation of images with a trained model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from pspfast.data import EvalTransform, Taxonomy, colorize, overlay, read_image
from pspfast.data.datasets import SeededDataset
from pspfast.engine.checkpoint import atomic_open
from pspfast.engine.config import PredictConfig
from pspfast.engine.weights import load_model
from pspfast.models import PSPNet


def predict(options: PredictConfig) -> list[Path]:
    """Writes label map, colours and overlay of every image.

    Returns:
        The overlays.

    Raises:
        ValueError, FileNotFoundError: the checkpoint or an image cannot be read, or two images
            would have the same output; before anything is written.
    """
    trained = load_model(options.checkpoint)
    paths = [Path(name) for name in options.images]
    _check_images(paths)
    device = PartialState().device
    model = trained.model.to(device)
    transform = EvalTransform()
    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for path in tqdm(paths, desc="predict", unit=" images", disable=None):
        image = read_image(path)
        labels = model.predict(transform(image)[None].to(device))[0].cpu()
        pixels = image.permute(1, 2, 0).numpy()
        save_pictures(folder / path.stem, pixels, labels, trained.taxonomy, options.alpha)
        written.append(folder / f"{path.stem}_overlay.png")
    return written


def segment_item(
    model: PSPNet, dataset: SeededDataset, index: int, device: torch.device
) -> tuple[np.ndarray, Tensor, Tensor]:
    """Pixels ``[H, W, 3]`` in uint8, labels and prediction ``[H, W]`` of an unaugmented item."""
    image, labels = dataset[index]
    predicted = model.predict(image[None].to(device))[0].cpu()
    return dataset.load(index)[0].permute(1, 2, 0).numpy(), labels, predicted


def save_pictures(
    stem: Path, pixels: np.ndarray, labels: Tensor, taxonomy: Taxonomy, alpha: float = 0.5
) -> None:
    """Writes ``<stem>_labels.png`` (indexed), ``<stem>_color.png`` and ``<stem>_overlay.png``.

    Args:
        stem: path without the endings.
        pixels: image ``[H, W, 3]`` in uint8.
        labels: classes ``[H, W]``.
        taxonomy: gives the colours.
        alpha: weight of the colours in the overlay.
    """
    indexed = Image.fromarray(labels.numpy().astype(np.uint8), mode="P")
    indexed.putpalette(np.array(taxonomy.palette, dtype=np.uint8).tobytes())
    pictures = {
        "labels": indexed,
        "color": Image.fromarray(colorize(labels, taxonomy)),
        "overlay": Image.fromarray(overlay(pixels, labels, taxonomy, alpha)),
    }
    for name, picture in pictures.items():
        with atomic_open(stem.with_name(f"{stem.name}_{name}.png")) as file:
            picture.save(file, format="png")


def _check_images(paths: list[Path]) -> None:
    seen: dict[str, Path] = {}
    for path in paths:
        if path.stem in seen:
            raise ValueError(f"{path} and {seen[path.stem]} would be written to the same files")
        seen[path.stem] = path
        read_image(path)

"""Procedural landscapes with their label maps: data for a demo that downloads nothing.

Much in them cannot be told from a small window: water mirrors the sky, roads, walls and rocks are
grey, cars and boats share paint and cabin. It takes the surroundings, as in the real scenes that
motivate pyramid pooling (arXiv 1612.01105, section 3.1).
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from torchvision import tv_tensors

from pspfast.data.datasets import SeededDataset, Transform
from pspfast.data.scenes.objects import Canvas, draw_boat, draw_car, draw_house, draw_tree
from pspfast.data.scenes.terrain import BOAT, CAR, GRASS, HOUSE, ROAD, TREE, WATER, Terrain, rgb
from pspfast.data.transforms import EvalTransform


class SceneDataset(SeededDataset):
    """Procedural scenes of `CLASSES["scenes"]`; the items are as `SegmentationDataset`'s.

    Args:
        length: number of scenes.
        size: (height, width) of every scene before the transform.
        seed: scene `index` depends on (seed, index) alone; the transform on the epoch too.
        transform: see `SegmentationDataset`; `None` normalises only.

    Raises:
        ValueError: `length` is not positive, or `size` is under 32.
    """

    def __init__(
        self,
        length: int,
        size: tuple[int, int] = (128, 160),
        seed: int = 0,
        transform: Transform | None = None,
    ) -> None:
        super().__init__(EvalTransform() if transform is None else transform, seed)
        if length < 1:
            raise ValueError(f"SceneDataset: length must be positive, got {length}")
        if min(size) < 32:
            raise ValueError(f"SceneDataset: size must be at least 32 by 32, got {size}")
        self.length, self.size = length, size

    def __len__(self) -> int:
        return self.length

    def load(self, index: int) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        image, labels = self.render(index)
        return (
            tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1)),
            tv_tensors.Mask(torch.from_numpy(labels)),
        )

    def render(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Image `[H, W, 3]` in RGB and label map `[H, W]` of scene `index`."""
        return _render(np.random.default_rng((self.seed, index)), *self.size)


class _Placed(NamedTuple):
    """An object on the ground; sorts from far to near."""

    depth: float  # 0 at the horizon, 1 at the lower edge
    label: int
    x: float
    y: float
    size: float


def _render(
    rng: np.random.Generator, height: int, width: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    terrain = Terrain(rng, height, width)
    terrain.paint()
    placed = sorted(_place(rng, terrain))
    image, labels = terrain.image, terrain.labels
    image *= _shadows(placed, terrain)
    canvas = Canvas(height, width, terrain.mood.horizon)
    for depth, label, x, y, size in placed:
        canvas.begin(label, fog=0.35 * (1 - depth) ** 2)
        if label == HOUSE:
            draw_house(canvas, rng, x, y, size, terrain.mood.lit)
        elif label == TREE:
            draw_tree(canvas, rng, x, y, size)
        elif label == CAR:
            draw_car(canvas, rng, x, y, size, oncoming=x < float(terrain.road_at(depth)[0]))
        else:
            draw_boat(canvas, rng, x, y, size)
    canvas.paste_onto(image, labels, 1 + 0.05 * terrain.noise(30, 30, 2)[..., None])
    image *= rgb(terrain.mood.tint) * rng.uniform(0.9, 1.12)
    grain = rng.standard_normal((height, width, 1), dtype=np.float32)
    image += grain * rng.uniform(1, 4.5)
    return np.clip(image, 0, 255).astype(np.uint8), labels


def _place(rng: np.random.Generator, terrain: Terrain) -> list[_Placed]:
    """Objects at random places where the ground is right and, but for trees, nothing else stands.

    Sizes are those of things equally large in the world, which grow with the depth.
    """
    height, width = terrain.labels.shape
    placed: list[_Placed] = []

    def place(label: int, on: int, depth: float, x: float, size: float) -> None:
        y = terrain.horizon + depth * (height - terrain.horizon)
        foot = [min(max(int(x + side * size), 0), width - 1) for side in (-0.5, 0, 0.5)]
        free = label == TREE or all(
            other.label == TREE or abs(x - other.x) > 0.75 * (size + other.size) for other in placed
        )
        if free and (terrain.labels[min(int(y), height - 1), foot] == on).all():
            placed.append(_Placed(depth, label, x, y, size))

    def anywhere() -> float:
        return rng.uniform(0.02, 0.98) * width

    for _ in range(rng.integers(3, 9)):
        depth = rng.uniform(0.1, 0.55)
        place(HOUSE, GRASS, depth, anywhere(), height * (0.1 + 0.42 * depth))
    for _ in range(rng.integers(6, 22)):
        depth = rng.uniform(0.03, 0.3) if rng.random() < 0.6 else rng.uniform(0.2, 0.8)
        size = height * (0.14 + 0.5 * depth) * rng.uniform(0.8, 1.2)
        place(TREE, GRASS, depth, anywhere(), size)
    for _ in range(9 if terrain.has_water else 0):
        depth = rng.uniform(0.12, 0.9)
        place(BOAT, WATER, depth, anywhere(), height * (0.1 + 0.36 * depth))
    for _ in range(8 if terrain.has_road else 0):
        depth = rng.uniform(0.2, 0.95)
        centre, half = (float(value) for value in terrain.road_at(depth))
        place(CAR, ROAD, depth, centre + float(rng.choice([-0.46, 0.46])) * half, 0.7 * half)
    return placed


def _shadows(placed: list[_Placed], terrain: Terrain) -> NDArray[np.float32]:
    """What the light is multiplied by, `[H, W, 1]`: less beneath the objects, to their right."""
    height, width = terrain.labels.shape
    mask = Image.new("L", (width, height))
    draw = ImageDraw.Draw(mask)
    for _, _, x, y, size in placed:
        draw.ellipse((x - 0.5 * size, y - 0.06 * size, x + 0.7 * size, y + 0.1 * size), 120)
    soft = np.asarray(mask.filter(ImageFilter.BoxBlur(1)), np.float32) / 255
    return np.subtract(1, soft)[..., None]

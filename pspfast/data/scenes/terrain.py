"""The ground and the sky of the procedural scenes, painted with numpy."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pspfast.data.classes import CLASSES
from pspfast.data.scenes.objects import Rgb

SKY, MOUNTAIN, GRASS, WATER, ROAD, HOUSE, TREE, CAR, BOAT = range(CLASSES["scenes"].num_classes)

Map = NDArray[np.float32]


def rgb(colour: Rgb) -> Map:
    return np.asarray(colour, np.float32)


@dataclass(frozen=True)
class Mood:
    """Light of a scene: sky colours at the top and at the horizon, and a tint over everything."""

    zenith: Rgb
    horizon: Rgb
    cloud: Rgb
    tint: Rgb
    lit: bool = False


MOODS = (
    Mood((62, 122, 206), (184, 214, 236), (250, 250, 250), (1.0, 1.0, 1.0)),
    Mood((94, 150, 214), (226, 226, 214), (255, 250, 240), (1.04, 1.0, 0.92)),
    Mood((98, 96, 168), (250, 184, 128), (255, 206, 170), (1.06, 0.9, 0.8), lit=True),
    Mood((146, 158, 174), (212, 216, 218), (230, 232, 234), (0.94, 0.97, 1.0)),
    Mood((44, 50, 104), (206, 122, 132), (168, 120, 150), (0.82, 0.78, 0.94), lit=True),
)


class Terrain:
    """Image and label map of a landscape without objects, painted back to front.

    Attributes:
        image: `[H, W, 3]` RGB, 0 to 255.
        labels: `[H, W]` class ids.
        horizon: its row.
    """

    def __init__(self, rng: np.random.Generator, height: int, width: int) -> None:
        self.rng, self.height, self.width = rng, height, width
        self.mood = MOODS[rng.choice(len(MOODS), p=(0.34, 0.24, 0.16, 0.16, 0.1))]
        self.horizon = height * rng.uniform(0.34, 0.5)
        self.y = np.arange(height, dtype=np.float32)[:, None] + 0.5
        self.x = np.arange(width, dtype=np.float32)[None, :] + 0.5
        # 0 at the horizon, 1 at the lower edge; sizes on the ground are proportional to it.
        self.depth = np.clip((self.y - self.horizon) / (height - self.horizon), 0, 1)
        self.image = np.zeros((height, width, 3), np.float32)
        self.labels = np.zeros((height, width), np.uint8)
        self.has_road = rng.random() < 0.7
        self.has_water = not self.has_road or rng.random() < 0.55
        bottom = rng.uniform(0.25, 0.75) * width
        self.road_from, self.road_to = rng.uniform(0.3, 0.7) * width, bottom
        self.road_bend = rng.uniform(-0.35, 0.35) * width
        self.road_width = rng.uniform(0.24, 0.38) * width

    def paint(self) -> None:
        self._sky()
        self._mountains()
        self._grass()
        if self.has_water:
            self._water()
        if self.has_road:
            self._road()

    def noise(self, rows: float, cols: float, octaves: int = 3) -> Map:
        """Smooth noise of about unit deviation with `rows` by `cols` bumps, `[H, W]`."""
        total = np.zeros((self.height, self.width), np.float32)
        for octave in range(octaves):
            shape = (int(rows * 2**octave) + 2, int(cols * 2**octave) + 2)
            grid = Image.fromarray(self.rng.standard_normal(shape, dtype=np.float32))
            smooth = grid.resize((self.width, self.height), Image.Resampling.BICUBIC)
            total += np.asarray(smooth) * 0.6**octave
        return total

    def _blend(self, alpha: Map, colour: Map | Rgb, label: int | None = None) -> None:
        """Paint `colour` where `alpha` `[H, W]` is 1; pixels over one half get the label."""
        weight = np.clip(alpha, 0, 1)[..., None]
        self.image += weight * (np.asarray(colour, np.float32) - self.image)
        if label is not None:
            self.labels[alpha > 0.5] = label

    def _sky(self) -> None:
        low = np.clip(self.y / self.horizon, 0, 1)[..., None]
        self.image[:] = rgb(self.mood.zenith) * (1 - low) + rgb(self.mood.horizon) * low
        sun_x, sun_y = self.rng.uniform(0, self.width), self.rng.uniform(0.1, 0.8) * self.horizon
        distance = np.hypot(self.x - sun_x, self.y - sun_y) / self.height
        self._blend(0.8 * np.exp(-distance * 7), (255, 244, 214))
        cover = np.clip(self.noise(4, 3, 4) - self.rng.uniform(-0.2, 1.2), 0, 1)
        self._blend(cover * (1.7 - 0.85 * cover), self.mood.cloud)

    def _mountains(self) -> None:
        ridges = self.rng.integers(0, 3)
        for ridge in range(ridges):
            nearer = (ridge + 1) / ridges
            knots = self.rng.uniform(0.2, 1, 9) * self.horizon * (0.75 - 0.35 * nearer)
            profile = np.interp(self.x[0], np.linspace(0, self.width, 9), knots)
            relief = self.noise(5, 7)
            top = (self.horizon - profile + relief[0] * 0.015 * self.height).astype(np.float32)
            rock = rgb(self.mood.horizon) * (0.75 - 0.35 * nearer)
            rock = rock + rgb((96, 92, 104)) * (0.1 + 0.4 * nearer)
            colour = rock * (1 + 0.1 * relief[..., None])
            if ridge == 0:
                snow = np.clip((0.45 * self.horizon - self.y + relief * 3) / 3, 0, 1)
                colour += 0.8 * snow[..., None] * (rgb((244, 246, 250)) - colour)
            self._blend(np.clip(self.y - top + 0.5, 0, 1), colour, MOUNTAIN)

    def _grass(self) -> None:
        dry = self.rng.uniform(0, 1)
        near = rgb((72, 128, 44)) * (1 - dry) + rgb((150, 146, 66)) * dry
        far = 0.55 * near + 0.45 * rgb(self.mood.horizon)
        depth = self.depth[..., None] ** 0.6
        tufts = self.noise(24, 14, 4) * (0.03 + 0.09 * self.depth)
        furrows = self.rng.uniform(3, 14) * (self.x - self.road_from) / self.width
        patches = np.sin(furrows / (0.12 + self.depth))
        colour = (far + (near - far) * depth) * (1 + tufts + 0.05 * patches)[..., None]
        bumps = self.noise(1, 3, 2)[0] * 0.008 * self.height
        self._blend(np.clip(self.y - self.horizon - bumps + 0.5, 0, 1), colour, GRASS)

    def road_at(self, depth: Map | float) -> tuple[Map | float, Map | float]:
        """Middle and half width of the road in pixels, `depth` below the horizon."""
        straight = self.road_from + (self.road_to - self.road_from) * depth
        return straight + self.road_bend * depth * (1 - depth), self.road_width * (depth + 0.01)

    def _water(self) -> None:
        wave = self.noise(7, 4, 2)
        far_bank = self.y - self.horizon - (0.035 + 0.008 * wave[0]) * self.height
        place = self.rng.integers(0, 3)
        if self.has_road or place == 0:
            centre, half = self.road_at(self.depth)
            gap = half * 1.25 + self.rng.uniform(0.05, 0.2) * self.width * self.depth
            gap = gap + wave[:, :1] * 0.04 * self.width * self.depth
            side = 1 if self.road_to < self.width / 2 else -1
            inside = np.minimum(side * (self.x - centre) - gap, far_bank)
        elif place == 1:
            shore = self.horizon + (0.3 + 0.035 * wave[0]) * self.height
            inside = np.minimum(far_bank, shore - self.y)
        else:
            inside = self.y - self.horizon - (0.2 + 0.03 * wave[0]) * self.height
        self._blend(np.clip(inside + 0.02 * self.height, 0, 1), (190, 174, 132))
        ripple = self.noise(40, 6, 2)
        mirrored = np.clip(2 * self.horizon - self.y + ripple * 2, 0, self.horizon - 1).astype(int)
        shifted = np.clip(self.x + ripple * 1.5, 0, self.width - 1).astype(int)
        colour = self.image[mirrored, shifted] * (0.86 - 0.2 * self.depth)[..., None]
        colour = 0.85 * colour + 0.15 * rgb((30, 80, 120)) + 5 * ripple[..., None]
        self._blend(np.clip(inside + 0.5, 0, 1), colour, WATER)

    def _road(self) -> None:
        centre, half = self.road_at(self.depth)
        across = np.abs(self.x - centre)
        on_ground = self.y > self.horizon
        grey = self.rng.uniform(84, 130)
        asphalt = rgb((grey, grey, 1.04 * grey)) * (1 + 0.05 * self.noise(30, 30, 1))[..., None]
        self._blend(np.clip(half * 1.12 - across, 0, 1) * on_ground, (156, 146, 118))
        self._blend(np.clip(half - across + 0.5, 0, 1) * on_ground, asphalt, ROAD)
        paint = (232, 230, 220)
        line = np.maximum(half * 0.03, 0.25)
        edge = np.clip(line - np.abs(across - half * 0.9) + 0.5, 0, 1)
        dashes = np.mod(self.rng.uniform(0.8, 1.3) / (self.depth + 0.08), 1) < 0.5
        middle = np.clip(line - across + 0.5, 0, 1) * dashes
        self._blend(np.maximum(edge, middle) * on_ground * np.sqrt(self.depth), paint)

"""What stands in the procedural scenes: houses, trees, cars and boats, drawn with Pillow."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Rgb = tuple[float, float, float]
Point = tuple[float, float]

# Cars and boats share their paint and the cabin, so that what lies around tells them apart.
PAINTS: tuple[Rgb, ...] = (
    (196, 40, 44),
    (240, 240, 236),
    (38, 84, 160),
    (240, 190, 40),
    (60, 62, 70),
    (44, 140, 120),
)
WALLS: tuple[Rgb, ...] = (
    (236, 226, 204),
    (214, 180, 140),
    (176, 96, 76),
    (168, 168, 166),
    (230, 230, 232),
)
ROOFS: tuple[Rgb, ...] = ((150, 58, 44), (104, 70, 56), (84, 88, 100), (176, 94, 56))
LEAVES: tuple[Rgb, ...] = (
    (52, 110, 44),
    (74, 128, 48),
    (38, 92, 58),
    (150, 120, 40),
    (170, 92, 40),
)
GLASS: Rgb = (62, 84, 110)
LIT_GLASS: Rgb = (255, 214, 120)
TYRE: Rgb = (26, 26, 28)


class Canvas:
    """Colours and class ids drawn together, at three times the size to soften the edges.

    Coordinates are pixels of the finished picture.
    """

    SCALE = 3  # odd, so that every finished pixel has a sample at its centre for its class
    EMPTY = 255

    def __init__(self, height: int, width: int, haze: Rgb) -> None:
        size = (width * self.SCALE, height * self.SCALE)
        self._rgb, self._ids = Image.new("RGB", size), Image.new("L", size, self.EMPTY)
        self._draw_rgb, self._draw_ids = ImageDraw.Draw(self._rgb), ImageDraw.Draw(self._ids)
        self.haze = haze
        self.fog = 0.0
        self.class_id = self.EMPTY

    def begin(self, class_id: int, fog: float) -> None:
        """Set the class of what is drawn next, and how far its colours fade into the haze."""
        self.class_id, self.fog = class_id, fog

    def polygon(self, points: Sequence[Point], colour: Rgb) -> None:
        scaled = [(x * self.SCALE, y * self.SCALE) for x, y in points]
        self._draw_rgb.polygon(scaled, fill=self._faded(colour))
        self._draw_ids.polygon(scaled, fill=self.class_id)

    def box(self, left: float, top: float, right: float, bottom: float, colour: Rgb) -> None:
        self.polygon([(left, top), (right, top), (right, bottom), (left, bottom)], colour)

    def disc(self, x: float, y: float, radius_x: float, radius_y: float, colour: Rgb) -> None:
        corners = (x - radius_x, y - radius_y, x + radius_x, y + radius_y)
        scaled = tuple(value * self.SCALE for value in corners)
        self._draw_rgb.ellipse(scaled, fill=self._faded(colour))
        self._draw_ids.ellipse(scaled, fill=self.class_id)

    def _faded(self, colour: Rgb) -> tuple[int, ...]:
        return tuple(
            int(min(max(c + (h - c) * self.fog, 0), 255))
            for c, h in zip(colour, self.haze, strict=True)
        )

    def paste_onto(
        self, image: NDArray[np.float32], labels: NDArray[np.uint8], texture: NDArray[np.float32]
    ) -> None:
        """Put everything drawn onto `image` `[H, W, 3]` and `labels` `[H, W]`, in place.

        `texture` `[H, W, 1]` multiplies the brightness.
        """
        ids = np.asarray(self._ids)[self.SCALE // 2 :: self.SCALE, self.SCALE // 2 :: self.SCALE]
        drawn = ids != self.EMPTY
        labels[drawn] = ids[drawn]
        mask = self._ids.point([255] * self.EMPTY + [0])
        coverage = np.asarray(mask.reduce(self.SCALE), np.float32)[..., None] / 255
        # Nothing drawn is black, so the mean over a pixel is already weighted by its coverage.
        colours = np.asarray(self._rgb.reduce(self.SCALE), np.float32)
        image *= 1 - coverage
        image += colours * texture


def shade(colour: Rgb, factor: float) -> Rgb:
    return (colour[0] * factor, colour[1] * factor, colour[2] * factor)


def pick(rng: np.random.Generator, colours: Sequence[Rgb]) -> Rgb:
    return shade(colours[int(rng.integers(len(colours)))], rng.uniform(0.85, 1.1))


def draw_house(
    canvas: Canvas, rng: np.random.Generator, x: float, y: float, size: float, lit: bool
) -> None:
    """A house `size` wide whose front stands on `y` around `x`."""
    wall, roof = pick(rng, WALLS), pick(rng, ROOFS)
    half, height = size / 2, size * rng.uniform(0.5, 0.75)
    side = size * rng.uniform(0.25, 0.5) * rng.choice([-1, 1])
    edge = x + half * np.sign(side)
    top, rise, slope = y - height, size * rng.uniform(0.3, 0.5), 0.12 * size
    back = y - slope
    canvas.polygon(
        [(edge, y), (edge + side, back), (edge + side, back - height), (edge, top)],
        shade(wall, 0.72),
    )
    canvas.box(x - half, top, x + half, y, wall)
    canvas.polygon([(x - half, top), (x, top - rise), (x + half, top)], shade(wall, 0.95))
    ridge = (x + side, top - rise - slope)
    eave = 0.05 * size * np.sign(side)
    under_eave = [(edge + side + eave, back - height), (edge + eave, top), (edge, top)]
    canvas.polygon([(x, top - rise), ridge, *under_eave], roof)
    far = 2 * x - edge
    canvas.polygon(
        [
            (x, top - rise - 0.05 * size),
            (x, top - rise + 0.03 * size),
            (far, top + 0.03 * size),
            (far - eave, top),
        ],
        shade(roof, 0.8),
    )
    pane = LIT_GLASS if lit else GLASS
    for row in range(1 if height < 0.6 * size else 2):
        window_top = top + (0.14 + 0.34 * row) * height
        for offset in (-0.3, 0.3) if row else (-0.3, 0.0, 0.3):
            left = x + (offset - 0.09) * size
            canvas.box(left, window_top, left + 0.18 * size, window_top + 0.22 * height, pane)
    canvas.box(x - 0.08 * size, y - 0.36 * height, x + 0.08 * size, y, shade(roof, 0.6))


def draw_tree(canvas: Canvas, rng: np.random.Generator, x: float, y: float, size: float) -> None:
    """A tree `size` high that stands on (x, y): a conifer or one with a round crown."""
    leaf = pick(rng, LEAVES)
    trunk = 0.04 * size
    canvas.box(x - trunk, y - 0.55 * size, x + trunk, y, (84, 60, 42))
    if rng.random() < 0.4:
        for step in range(4):
            low, high = y - (0.14 + 0.2 * step) * size, y - (0.46 + 0.18 * step) * size
            half = (0.27 - 0.055 * step) * size
            canvas.polygon([(x - half, low), (x, high), (x + half, low)], shade(leaf, 0.72))
            canvas.polygon([(x - half, low), (x, high), (x - 0.1 * half, low)], shade(leaf, 0.95))
        return
    for light in np.linspace(0.62, 1.2, 14):
        angle, reach = rng.uniform(0, 2 * np.pi), rng.uniform(0.05, 0.2) * size
        radius = rng.uniform(0.1, 0.17) * size * (1.5 - 0.6 * light)
        # Light comes from the upper left: brighter tufts move there.
        drift = (light - 0.9) * 0.2 * size
        canvas.disc(
            x + np.cos(angle) * reach - drift,
            y - 0.66 * size + np.sin(angle) * reach - drift,
            radius * 1.1,
            radius,
            shade(leaf, float(light)),
        )


def draw_cabin(canvas: Canvas, x: float, y: float, width: float, paint: Rgb) -> None:
    """The cabin of a car or a boat, its lower edge on `y`."""
    height = 0.48 * width
    canvas.polygon(
        [
            (x - 0.5 * width, y),
            (x - 0.36 * width, y - height),
            (x + 0.36 * width, y - height),
            (x + 0.5 * width, y),
        ],
        shade(paint, 0.9),
    )
    canvas.polygon(
        [
            (x - 0.4 * width, y - 0.12 * height),
            (x - 0.3 * width, y - 0.82 * height),
            (x + 0.3 * width, y - 0.82 * height),
            (x + 0.4 * width, y - 0.12 * height),
        ],
        GLASS,
    )


def draw_car(
    canvas: Canvas, rng: np.random.Generator, x: float, y: float, size: float, oncoming: bool
) -> None:
    """A car `size` wide on the road at (x, y), seen from the front or from behind."""
    paint, half = pick(rng, PAINTS), size / 2
    for sign in (-1, 1):
        wheel = x + sign * 0.36 * size
        canvas.box(wheel - 0.1 * size, y - 0.2 * size, wheel + 0.1 * size, y, TYRE)
    draw_cabin(canvas, x, y - 0.46 * size, 0.86 * size, paint)
    canvas.box(x - half, y - 0.48 * size, x + half, y - 0.1 * size, paint)
    canvas.box(x - half, y - 0.18 * size, x + half, y - 0.1 * size, shade(paint, 0.6))
    lamp = (255, 246, 214) if oncoming else (230, 40, 40)
    for sign in (-1, 1):
        canvas.disc(x + sign * 0.38 * size, y - 0.34 * size, 0.08 * size, 0.06 * size, lamp)


def draw_boat(canvas: Canvas, rng: np.random.Generator, x: float, y: float, size: float) -> None:
    """A boat `size` long that floats at (x, y): with a cabin or with sails."""
    paint, half, deck = pick(rng, PAINTS), size / 2, y - 0.2 * size
    if rng.random() < 0.5:
        draw_cabin(canvas, x - 0.05 * size, deck, 0.55 * size, pick(rng, PAINTS[:2]))
    else:
        sail = pick(rng, (PAINTS[1], PAINTS[1], PAINTS[0]))
        mast, top = x - 0.02 * size, deck - 0.95 * size
        canvas.polygon([(mast, top), (mast, deck), (x + 0.42 * size, deck)], sail)
        canvas.polygon(
            [(mast - 0.05 * size, top + 0.12 * size), (mast, deck), (x - 0.4 * size, deck)],
            shade(sail, 0.84),
        )
        canvas.box(mast - 0.02 * size, top, mast + 0.02 * size, deck, (90, 70, 54))
    canvas.polygon(
        [(x - half, deck), (x + half, deck), (x + 0.34 * size, y), (x - 0.36 * size, y)], paint
    )
    canvas.polygon(
        [
            (x - 0.43 * size, y - 0.09 * size),
            (x + 0.41 * size, y - 0.09 * size),
            (x + 0.34 * size, y),
            (x - 0.36 * size, y),
        ],
        shade(paint, 0.6),
    )

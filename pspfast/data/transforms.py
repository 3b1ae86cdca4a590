"""Augmentation for training and preparation for evaluation, on torchvision's v2 transforms."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from pspfast.published.preprocessing import IMAGENET, ChannelOrder

# Statistics of ImageNet's RGB values scaled to 0..1, which every published backbone expects.
IMAGENET_MEAN, IMAGENET_STD = IMAGENET.mean, IMAGENET.std

# semseg blurs with OpenCV's 5 by 5 kernel for "sigma 0", the binomial 1 4 6 4 1; 1.1 comes closest.
BLUR_SIZE, BLUR_SIGMA = 5, 1.1
ROTATE_PROBABILITY = 0.5

Span = tuple[int, int]


class _Normalized(v2.Transform):
    """What both transforms share: how a padded pixel looks, and the final conversion."""

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        ignore_index: int,
        channel_order: ChannelOrder,
    ) -> None:
        super().__init__()
        if not 0 <= ignore_index <= 255:
            raise ValueError(
                f"{type(self).__name__}: ignore_index must be a value of an 8-bit label map, "
                f"0 to 255, got {ignore_index}"
            )
        # Of RGB images; the channels are turned round last.
        self.is_bgr = channel_order == "bgr"
        order = -1 if self.is_bgr else 1
        self.mean, self.std = list(mean)[::order], list(std)[::order]
        self.ignore_index = ignore_index

    def _fill(self, inpt: torch.Tensor) -> float | list[float]:
        if isinstance(inpt, tv_tensors.Mask):
            return self.ignore_index
        return [round(255 * value) for value in self.mean]

    def _finish(self, inpt: torch.Tensor) -> torch.Tensor:
        if isinstance(inpt, tv_tensors.Mask):
            return inpt.as_subclass(torch.Tensor).long()
        scaled = F.to_dtype(inpt, torch.float32, scale=True)
        image = F.normalize(scaled, self.mean, self.std).as_subclass(torch.Tensor)
        return image.flip(-3) if self.is_bgr else image


class EvalTransform(_Normalized):
    """Normalise a whole image.

    Takes an image, uint8 `tv_tensors.Image` `[3, H, W]`, and a label map or none, uint8
    `tv_tensors.Mask` `[H, W]`; returns float32 `[3, H, W]` and int64 `[H, W]`.

    Args:
        mean: of each channel, for values scaled to 0..1.
        std: likewise.
        size_multiple: pad right and bottom to multiples of this, the image with `mean`, the label
            with `ignore_index`. `None` keeps the size.
        ignore_index: label of padded pixels.
        channel_order: of `mean`, `std` and the result; images come in RGB.
    """

    def __init__(
        self,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        size_multiple: int | None = None,
        ignore_index: int = 255,
        channel_order: ChannelOrder = "rgb",
    ) -> None:
        super().__init__(mean, std, ignore_index, channel_order)
        if size_multiple is not None and size_multiple < 1:
            raise ValueError(
                f"EvalTransform: size_multiple must be positive or None, got {size_multiple}"
            )
        self.size_multiple = size_multiple

    def transform(self, inpt: torch.Tensor, params: dict[str, Any]) -> torch.Tensor:
        if self.size_multiple:
            height, width = F.get_size(inpt)
            padding = [0, 0, -width % self.size_multiple, -height % self.size_multiple]
            inpt = F.pad(inpt, padding, fill=self._fill(inpt))
        return self._finish(inpt)


class TrainTransform(_Normalized):
    """The augmentation of the PSPNet authors' PyTorch code, with its order and distributions.

    1. Scale by U[`scale`]: image bilinear without antialias, label nearest.
    2. With probability 0.5 rotate by U[-`rotate`, `rotate`] degrees about the centre, same canvas.
    3. With probability `blur`, a 5 by 5 Gaussian blur of the image, borders reflected.
    4. With probability `flip`, mirror left to right.
    5. Where smaller than the crop, pad evenly; then crop at a uniformly drawn place.
    6. Normalise.

    Pixels that rotation or padding uncover hold `mean` (rounded to 8 bits) and `ignore_index`.
    Takes and returns what `EvalTransform` does, at `crop_size`. Everything random comes from
    torch's default CPU generator, the same number of draws each time.

    Args:
        crop_size: (height, width) of the result.
        scale: smallest and largest factor.
        rotate: largest angle in degrees, 0 to 90.
        blur: probability of the blur.
        flip: probability of the mirror image.
        mean: of each channel, for values scaled to 0..1.
        std: likewise.
        ignore_index: label of uncovered pixels.
        channel_order: of `mean`, `std` and the result; images come in RGB.
    """

    def __init__(
        self,
        crop_size: tuple[int, int],
        scale: tuple[float, float] = (0.5, 2.0),
        rotate: float = 10.0,
        blur: float = 0.5,
        flip: float = 0.5,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        ignore_index: int = 255,
        channel_order: ChannelOrder = "rgb",
    ) -> None:
        super().__init__(mean, std, ignore_index, channel_order)
        check_augmentation("TrainTransform: ", crop_size, scale, rotate, blur, flip)
        self.crop_size, self.scale, self.rotate = crop_size, scale, rotate
        self.blur, self.flip = blur, flip

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = v2.query_size(flat_inputs)
        draws = torch.rand(7).tolist()
        scale = self.scale[0] + (self.scale[1] - self.scale[0]) * draws[0]
        size = [max(1, round(height * scale)), max(1, round(width * scale))]
        rotated, blurred, flipped = (
            draw < p
            for draw, p in zip(draws[1:4], (ROTATE_PROBABILITY, self.blur, self.flip), strict=True)
        )
        angle = (2 * draws[4] - 1) * self.rotate if rotated else 0.0
        # Drawn before the mirror image: uniform places stay uniform in it.
        rows, cols = (
            _crop_span(full, crop, draw)
            for full, crop, draw in zip(size, self.crop_size, draws[5:], strict=True)
        )
        return {
            "size": size,
            "angle": angle,
            "blurred": blurred,
            "flipped": flipped,
            "rows": rows,
            "cols": cols,
        }

    def transform(self, inpt: torch.Tensor, params: dict[str, Any]) -> torch.Tensor:
        # Rotation and blur are the expensive steps; they run on the part of the canvas that reaches
        # the crop: the window, around it what the blur reads, around that what the rotation reads.
        is_image = not isinstance(inpt, tv_tensors.Mask)
        size, angle = params["size"], params["angle"]
        blurred = params["blurred"] and is_image
        window = [params["rows"], params["cols"]]
        region = [
            (max(a - BLUR_SIZE // 2, 0), min(b + BLUR_SIZE // 2, full)) if blurred else (a, b)
            for (a, b), full in zip(window, size, strict=True)
        ]
        if inpt.shape[-2:] != torch.Size(size):
            inpt = _resize(inpt, size)
        inpt = self._rotate_region(inpt, angle, region, size) if angle else _cut(inpt, region)
        if blurred:
            inpt = _blur(inpt)
            inpt = _cut(inpt, _relative(window, region))
        if params["flipped"]:
            inpt = F.horizontal_flip(inpt)
        return self._finish(self._pad(inpt))

    def _rotate_region(
        self, canvas: torch.Tensor, angle: float, region: list[Span], size: list[int]
    ) -> torch.Tensor:
        """`region` of the `canvas` (H, W = `size`) rotated counter-clockwise about its centre."""
        box = _rotation_box(region, size, angle)
        (top, _), (left, _) = box
        rotated = F.rotate(
            _cut(canvas, box),
            angle,
            interpolation=(
                v2.InterpolationMode.NEAREST
                if isinstance(canvas, tv_tensors.Mask)
                else v2.InterpolationMode.BILINEAR
            ),
            center=[size[1] / 2 - left, size[0] / 2 - top],
            fill=self._fill(canvas),
        )
        return _cut(rotated, _relative(region, box))

    def _pad(self, inpt: torch.Tensor) -> torch.Tensor:
        missing = [crop - size for crop, size in zip(self.crop_size, F.get_size(inpt), strict=True)]
        if not any(missing):
            return inpt
        top, left = missing[0] // 2, missing[1] // 2
        padding = [left, top, missing[1] - left, missing[0] - top]
        return F.pad(inpt, padding, fill=self._fill(inpt))


def _resize(inpt: torch.Tensor, size: list[int]) -> torch.Tensor:
    """Bilinear without antialias; label maps take the nearest."""
    # In torch 2.14 the kernel for bytes fails an assertion where the result is a single pixel.
    if size == [1, 1] and isinstance(inpt, tv_tensors.Image):
        values = _resize(inpt.as_subclass(torch.Tensor).float(), size)
        return tv_tensors.wrap(values.round().to(inpt.dtype), like=inpt)
    bilinear = v2.InterpolationMode.BILINEAR
    return F.resize(inpt, size, interpolation=bilinear, antialias=False)


def _blur(image: torch.Tensor) -> torch.Tensor:
    """The 5 by 5 blur with reflected borders, of images of any size, as OpenCV's."""
    radius = BLUR_SIZE // 2
    height, width = F.get_size(image)
    if min(height, width) <= radius:
        # torch reflects no more than there is.
        rows, cols = (_reflected(length, radius) for length in (height, width))
        blurred = _blur(image[..., rows[:, None], cols])
        return blurred[..., radius : radius + height, radius : radius + width]
    return F.gaussian_blur(image.contiguous(), [BLUR_SIZE] * 2, [BLUR_SIGMA] * 2)


def _reflected(length: int, radius: int) -> torch.Tensor:
    """Positions on an axis from ``-radius`` to ``length + radius - 1``, reflected as often as it
    takes at its first and last element."""
    period = max(2 * (length - 1), 1)
    positions = torch.arange(-radius, length + radius).abs() % period
    return torch.minimum(positions, (period - positions) % (period + 1)).clamp(max=length - 1)


def check_augmentation(
    owner: str,
    crop_size: tuple[int, int],
    scale: tuple[float, float],
    rotate: float,
    blur: float,
    flip: float,
) -> None:
    """Raises ValueError where ``TrainTransform`` cannot have one of its arguments.

    Args:
        owner: what stands before the argument's name in the message.
        crop_size: and the others, as of ``TrainTransform``.
    """
    for name, value, valid, expected in (
        ("crop_size", crop_size, min(crop_size) >= 1, "sizes of at least 1"),
        ("scale", scale, 0 < scale[0] <= scale[1], "0 < smallest <= largest"),
        ("rotate", rotate, 0 <= rotate <= 90, "an angle of 0 to 90 degrees"),
        ("blur", blur, 0 <= blur <= 1, "a probability"),
        ("flip", flip, 0 <= flip <= 1, "a probability"),
    ):
        if not valid:
            got = [*value] if isinstance(value, tuple) else value
            raise ValueError(f"{owner}{name}: expected {expected}, got {got}")


def _crop_span(full: int, crop: int, draw: float) -> Span:
    """Where a crop at a place drawn from [0, 1) begins and ends on an axis of length `full`."""
    start = int(draw * (max(full - crop, 0) + 1))
    return start, min(start + crop, full)


def _rotation_box(region: list[Span], size: list[int], angle: float) -> list[Span]:
    """The part of the canvas that holds `region` and everything that rotating it reads.

    A pixel at (x, y) from the centre, y downwards, reads (x cos - y sin, x sin + y cos).
    """
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    y, x = ((a + b - full) / 2 for (a, b), full in zip(region, size, strict=True))
    half_y, half_x = ((b - a) / 2 for a, b in region)
    centres = x * sin + y * cos + size[0] / 2, x * cos - y * sin + size[1] / 2
    halves = half_x * abs(sin) + half_y * abs(cos), half_x * abs(cos) + half_y * abs(sin)
    return [
        # 2: the second tap of the bilinear interpolation, and rounding.
        (max(min(a, math.floor(c - h) - 2), 0), min(max(b, math.ceil(c + h) + 2), full))
        for (a, b), c, h, full in zip(region, centres, halves, size, strict=True)
    ]


def _relative(inner: list[Span], outer: list[Span]) -> list[Span]:
    return [(a - o, b - o) for (a, b), (o, _) in zip(inner, outer, strict=True)]


def _cut(inpt: torch.Tensor, spans: list[Span]) -> torch.Tensor:
    (top, bottom), (left, right) = spans
    return F.crop(inpt, top, left, bottom - top, right - left)

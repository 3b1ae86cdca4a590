"""Reading images and label maps: pixels mean what the file says, or the file is refused by name."""

from __future__ import annotations

import io
import os
import stat
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from pspfast.data.labels import LabelIds

# Pixels of 3 GB in RGB. Pillow's own limit, a fifth of it, is below satellite images and slides.
MAX_PIXELS = int(os.environ.get("PSPFAST_MAX_PIXELS", 10**9))

# Modes whose pixels are the class ids themselves; palette entries are not looked up.
_LABEL_MODES = {"1", "L", "P"}
# Their compression changes the values.
_LOSSY_FORMATS = {"JPEG", "JPEG2000", "MPO"}
# 0 to 255 of pixels of fewer bits, by Pillow's names of what the file holds.
_SCALED_BY = {"L;2": 255 // 3, "L;2I": 255 // 3, "L;4": 255 // 15, "L;4I": 255 // 15}

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Pillow's limit is a global, which other threads may want as it is.
_limit_lock = threading.Lock()


def read_image(path: str | Path) -> tv_tensors.Image:
    """Decode an image to uint8 RGB `[3, H, W]`, upright as its EXIF orientation says.

    That is how viewers and annotation tools show it, hence how label maps are drawn; the label
    maps themselves carry no orientation. Of 16 bits a channel the nearest of 8 bits are taken;
    transparency is left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no regular file, cannot be decoded, has more than `MAX_PIXELS`, or pixels
            of a range that the file does not tell (32-bit integers, floats).
    """
    with _naming(path), _opened(path) as image:
        image.load()
        method = _UPRIGHT.get(orientation(image))
        upright = image if method is None else image.transpose(method)
        return tv_tensors.Image(F.pil_to_tensor(_to_rgb(upright)))


def read_label(path: str | Path, label_ids: LabelIds | None = None) -> tv_tensors.Mask:
    """Decode a label map to its class ids, uint8 `[H, W]`.

    Args:
        path: the file.
        label_ids: what the file's ids mean; `None` where they are class ids.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no regular file, cannot be decoded, is compressed with losses, its pixels
            are not ids of 8 bits or fewer, or not in `label_ids`.
    """
    with _naming(path), _opened(path) as image:
        if image.mode not in _LABEL_MODES:
            raise ValueError(
                f"a label map must hold one 8-bit class id for each pixel (a grey or palette "
                f"image), got mode {image.mode}"
            )
        if image.format in _LOSSY_FORMATS:
            raise ValueError(
                f"a label map must be saved without losses, as PNG for one; {image.format} changes "
                "the class ids"
            )
        # Pillow spreads grey values of 2 and 4 bits over 0 to 255.
        scale = _SCALED_BY.get(_raw_mode(image), 1)
        ids = np.array(image, dtype=np.uint8) // scale
        if label_ids is not None:
            ids = label_ids.to_classes(ids)
        return tv_tensors.Mask(torch.from_numpy(ids))


def orientation(image: Image.Image) -> int:
    """EXIF's, 1 to 8; 1, upright, where there is none or the metadata is damaged."""
    try:
        return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    # Damaged metadata makes Pillow raise SyntaxError, struct.error, TypeError and others.
    except Exception:
        return 1


def image_orientation(path: str | Path) -> int:
    """The same of a file; raises as `read_image`."""
    with _naming(path), _opened(path) as image:
        return orientation(image)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # Pillow's conversion clips values above 255 instead of scaling them.
        return Image.fromarray(_to_8_bits(np.asarray(image))).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(
            f"the image has mode {image.mode}, whose range the file does not tell; convert it to 8 "
            "bits a channel"
        )
    return image.convert("RGB")


def _to_8_bits(values: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """The nearest of 0 to 255 for 0 to 65535."""
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _raw_mode(image: Image.Image) -> str:
    """Pillow's name of the pixels as the file has them."""
    tile = getattr(image, "tile", None)
    arguments = tile[0].args if tile else ""
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return str(first)


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    # A FIFO would wait for a writer, a device may not end.
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("expected a regular file, got a folder, pipe, socket or device")
    with _open_with_our_limit(path) as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise ValueError(
                f"{width}x{height} are more than {MAX_PIXELS} pixels; set the environment variable "
                "PSPFAST_MAX_PIXELS to read it"
            )
        yield image


def _open_with_our_limit(path: str | Path) -> Image.Image:
    with _limit_lock:
        previous, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(path)
        except (UnidentifiedImageError, SyntaxError, ValueError):
            repaired = _without_damaged_metadata(Path(path).read_bytes())
            if repaired is None:
                raise
            return Image.open(io.BytesIO(repaired))
        finally:
            Image.MAX_IMAGE_PIXELS = previous


def _without_damaged_metadata(data: bytes) -> bytes | None:
    """A PNG file less the ancillary chunks (PNG 5.4) whose checksum is wrong; None where it has
    none of them."""
    signature = b"\x89PNG\r\n\x1a\n"
    if not data.startswith(signature):
        return None
    kept, at, is_damaged = [signature], len(signature), False
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        kind = data[at + 4 : at + 8]
        is_ancillary = bool(kind[:1].islower())
        checksum = int.from_bytes(data[end - 4 : end], "big")
        if is_ancillary and zlib.crc32(data[at + 4 : end - 4]) != checksum:
            is_damaged = True
        else:
            kept.append(data[at:end])
        at = end
    return b"".join(kept) if is_damaged else None


@contextmanager
def _naming(path: str | Path) -> Iterator[None]:
    """Put the file's name in front of whatever a decoder raises."""
    try:
        yield
    except FileNotFoundError:
        raise
    # Broken files make Pillow raise OSError, SyntaxError, struct.error, zlib.error and others.
    except Exception as error:
        raise ValueError(f"{path}: {error}") from error

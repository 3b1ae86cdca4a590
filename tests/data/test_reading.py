"""Pixels mean what the file says."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
from PIL import Image

from pspfast.data import check_samples, read_image, read_label, reading

GREY = np.add.outer(2 * np.arange(24), 5 * np.arange(32)).astype(np.uint8)


def save(path: Path, pixels: np.ndarray, **options: object) -> Path:
    Image.fromarray(pixels).save(path, **options)
    return path


def chunk(kind: bytes, data: bytes, damage: int = 0) -> bytes:
    checksum = zlib.crc32(kind + data) ^ damage
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def with_chunk(path: Path, extra: bytes) -> Path:
    """The PNG file with a chunk behind its header, which ends at byte 33."""
    data = path.read_bytes()
    path.write_bytes(data[:33] + extra + data[33:])
    return path


@pytest.mark.parametrize("name", ["16.png", "16.tif"])
def test_16_bits_are_the_picture_of_8(tmp_path: Path, name: str) -> None:
    deep = read_image(save(tmp_path / name, GREY.astype(np.uint16) * 257))
    assert torch.equal(deep, read_image(save(tmp_path / "8.png", GREY)))
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.rint(ramp / 257).astype(np.uint8)
    assert np.array_equal(read_image(save(tmp_path / name, ramp))[0].numpy(), expected)


@pytest.mark.parametrize(("dtype", "mode"), [(np.float32, "F"), (np.int32, "I")])
def test_unknown_ranges_are_refused(tmp_path: Path, dtype: type, mode: str) -> None:
    path = save(tmp_path / "deep.tif", GREY.astype(dtype))
    with pytest.raises(ValueError, match=rf"deep\.tif: the image has mode {mode}, whose range"):
        read_image(path)


YCBCR = pytest.param(
    "YCbCr",
    marks=pytest.mark.skipif(
        int(PIL.__version__.split(".")[0]) < 13,
        reason="Pillow 12 cannot read the YCbCr TIFF that it saves",
    ),
)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "CMYK", YCBCR])
def test_colour_modes(tmp_path: Path, mode: str) -> None:
    rgb = Image.fromarray(np.stack([GREY, 255 - GREY, GREY // 2], 2))
    picture = rgb.convert(mode)
    path = tmp_path / ("picture.png" if mode not in ("CMYK", "YCbCr") else "picture.tif")
    picture.save(path)
    expected = np.asarray(picture.convert("RGB"))
    assert np.array_equal(read_image(path).permute(1, 2, 0).numpy(), expected)
    if mode in ("RGB", "RGBA", "CMYK"):
        assert np.array_equal(expected, np.asarray(rgb))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_upright(tmp_path: Path, orientation: int) -> None:
    picture = Image.fromarray(GREY)
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(tmp_path / "turned.png", exif=exif)
    from PIL import ImageOps

    with Image.open(tmp_path / "turned.png") as turned:
        expected = np.asarray(ImageOps.exif_transpose(turned))
    assert np.array_equal(read_image(tmp_path / "turned.png")[0].numpy(), expected)


def test_damaged_metadata_leaves_good_pixels(tmp_path: Path) -> None:
    expected = read_image(save(tmp_path / "good.png", GREY))
    broken_exif = with_chunk(save(tmp_path / "exif.png", GREY), chunk(b"eXIf", b"MM\0*\xff\xff"))
    assert torch.equal(read_image(broken_exif), expected)
    wrong_checksum = with_chunk(save(tmp_path / "text.png", GREY), chunk(b"tEXt", b"a\0b", 1))
    assert torch.equal(read_image(wrong_checksum), expected)


def test_damaged_pixels_are_named(tmp_path: Path) -> None:
    path = save(tmp_path / "cut.png", np.random.default_rng(0).integers(0, 256, (40, 40), np.uint8))
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(ValueError, match=r"cut\.png: "):
        read_image(path)


def test_images_above_pillows_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "large.png", GREY)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert read_image(path).shape == (3, 24, 32)
    assert Image.MAX_IMAGE_PIXELS == 10
    monkeypatch.setattr(reading, "MAX_PIXELS", 24 * 32 - 1)
    message = r"large\.png: 32x24 are more than 767 pixels; set .* PSPFAST_MAX_PIXELS"
    with pytest.raises(ValueError, match=message):
        read_image(path)


@pytest.mark.parametrize("read", [read_image, read_label])
def test_what_is_no_file(tmp_path: Path, read: object) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    for path in (tmp_path / "pipe.png", tmp_path, Path("/dev/null")):
        with pytest.raises(ValueError, match=f"^{path}: expected a regular file"):
            read(path)
    with pytest.raises(ValueError, match=r"loop\.png"):
        read(tmp_path / "loop.png")


@pytest.mark.parametrize(
    ("bits", "ids"), [(1, (0, 1)), (2, (0, 1, 2, 3)), (2, (0, 3)), (4, (0, 15))]
)
def test_label_maps_of_few_bits(tmp_path: Path, bits: int, ids: tuple[int, ...]) -> None:
    """Written here: Pillow before 13 saves grey values with 8 bits."""
    labels = np.resize(np.asarray(ids, np.uint8), (9, 8))
    header = struct.pack(">IIBBBBB", 8, 9, bits, 0, 0, 0, 0)
    pixels = np.unpackbits(labels[..., None], axis=2)[..., -bits:].reshape(9, -1)
    # A row begins with the number of its filter, none.
    rows = np.pad(np.packbits(pixels, axis=1), ((0, 0), (1, 0)))
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes())), (b"IEND", b""))
    path = tmp_path / "labels.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*c) for c in chunks))
    assert np.array_equal(read_label(path).numpy(), labels)


def test_label_maps_with_losses_are_refused(tmp_path: Path) -> None:
    image = save(tmp_path / "image.png", GREY)
    label = save(tmp_path / "label.jpg", GREY // 40)
    with pytest.raises(ValueError, match=r"label\.jpg: a label map must be saved without losses"):
        check_samples([(image, label)], 150)

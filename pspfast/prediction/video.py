"""Videos, read and written by PyAV."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from pspfast.files import atomic_open

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Frame:
    """Pixels ``[H, W, 3]``, RGB, upright, and when they are shown, in units of the time base."""

    pixels: Pixels
    time: int
    time_base: Fraction


def check_video_support(path: Path) -> None:
    """Raises ValueError where PyAV is missing."""
    if find_spec("av") is None:
        raise ValueError(f"{path}: videos need PyAV; pip install 'pspfast[video]' brings it")


def redraw_video(
    source: Path, target: Path, redraw: Callable[[list[Pixels]], list[Pixels]], batch_size: int
) -> None:
    """Writes an MP4 file, without sound, that shows the source's frames redrawn at their times.

    Args:
        source: video.
        target: file to write; its folder is made if there is none.
        redraw: from frames to as many others of the same size.
        batch_size: frames that it is given at a time.

    Raises:
        ValueError: the source cannot be decoded; then nothing is written.
    """
    import av

    try:
        video = av.open(str(source))
    except av.FFmpegError as error:
        raise ValueError(f"{source}: {error.strerror}") from error
    with video:
        if not video.streams.video:
            raise ValueError(f"{source}: no video in this file")
        target.parent.mkdir(parents=True, exist_ok=True)
        frames = _read_frames(source, video)
        with atomic_open(target) as file, av.open(file, "w", format="mp4") as output:
            stream = None
            while batch := list(islice(frames, batch_size)):
                drawn = redraw([frame.pixels for frame in batch])
                stream = stream or _add_stream(output, batch[0], video.streams.video[0])
                for frame, pixels in zip(batch, drawn, strict=True):
                    picture = av.VideoFrame.from_ndarray(pixels, "rgb24")
                    picture.pts, picture.time_base = frame.time, frame.time_base
                    output.mux(stream.encode(picture))
            if stream is None:
                raise ValueError(f"{source}: no frames in this video")
            output.mux(stream.encode())


def _read_frames(path: Path, video: Any) -> Iterator[Frame]:
    from av import FFmpegError

    stream = video.streams.video[0]
    frames = video.decode(stream)
    bar = tqdm(frames, path.name, stream.frames or None, unit=" frames", disable=None, leave=False)
    try:
        for frame in bar:
            if frame.pts is None:
                raise ValueError(f"{path}: the frames have no times")
            pixels = frame.to_ndarray(format="rgb24", width=stream.width, height=stream.height)
            upright = np.ascontiguousarray(np.rot90(pixels, frame.rotation // 90))
            yield Frame(upright, frame.pts, frame.time_base)
    except FFmpegError as error:
        raise ValueError(f"{path}: {error.strerror}") from error


def _add_stream(output: Any, frame: Frame, source: Any) -> Any:
    stream = output.add_stream("libx264", rate=source.average_rate)
    stream.height, stream.width = frame.pixels.shape[:2]
    # Colours at half the resolution, which every player shows, exist for even sizes only.
    stream.pix_fmt = "yuv444p" if stream.height % 2 or stream.width % 2 else "yuv420p"
    stream.codec_context.time_base = frame.time_base
    return stream

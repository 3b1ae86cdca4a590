"""Videos through ``pspfast predict``."""

import csv
import struct
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pspfast.cli import main
from pspfast.config import Config
from pspfast.data import ClassList, EvalTransform, overlay
from pspfast.model_files import build_model, load_model, save_weights
from pspfast.prediction.options import PredictConfig
from pspfast.prediction.predict import predict

RATE = Fraction(25, 2)


@pytest.fixture
def av() -> Any:
    return pytest.importorskip("av")


@pytest.fixture
def checkpoint(config: Config, tmp_path: Path) -> str:
    """A model whose classes vary from pixel to pixel, not trained."""
    torch.manual_seed(0)
    model = build_model(config, 3)
    torch.nn.init.normal_(model.cls[-1].weight, std=3)
    path = tmp_path / "model.safetensors"
    save_weights(path, model.state_dict(), config, ClassList.generic(3), {})
    return str(path)


def draw(path: Path, size: tuple[int, int], skipped: int = 4, **options: Any) -> str:
    """Five frames, brighter from stripe to stripe and over time; the one after ``skipped`` late."""
    import av

    height, width = size
    codec, pix_fmt = options.get("codec", "libx264"), options.get("pix_fmt", "yuv420p")
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=RATE)
        stream.height, stream.width, stream.pix_fmt = height, width, pix_fmt
        for i in range(5):
            row = np.linspace(0, 180, width) + 15 * i
            pixels = np.broadcast_to(row[None, :, None], (height, width, 3)).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24")
            frame.pts, frame.time_base = i + (i > skipped), 1 / RATE
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return str(path)


def decode(path: Path | str) -> tuple[list[np.ndarray], list[float], Any]:
    """Frames, their times in seconds, and the rate."""
    import av

    with av.open(str(path)) as video:
        frames = [(f.to_ndarray(format="rgb24"), f.time) for f in video.decode(video=0)]
        pixels, times = zip(*frames, strict=True)
        return [*pixels], [*times], video.streams.video[0].average_rate


@pytest.mark.parametrize(
    ("size", "source"),
    [((48, 64), "drive.mp4"), ((45, 63), "drive.MKV")],
    ids=["even", "odd"],
)
def test_overlay_and_shares(
    av: Any, checkpoint: str, tmp_path: Path, size: tuple[int, int], source: str
) -> None:
    pix_fmt = "yuv420p" if size == (48, 64) else "yuv444p"
    path = draw(tmp_path / source, size, pix_fmt=pix_fmt)
    output = tmp_path / "out"
    options = PredictConfig([path], checkpoint, str(output), ("shares",), batch_size=2)
    result = predict(options)
    assert result.written == [output / "drive_overlay.mp4", output / "shares.csv"]
    assert sorted(result.written) == sorted(output.iterdir())

    before, times, rate = decode(path)
    after, new_times, new_rate = decode(output / "drive_overlay.mp4")
    assert new_rate == rate == RATE
    np.testing.assert_allclose(new_times, times, atol=1e-3)
    trained = load_model(checkpoint)
    counts = np.zeros(3)
    for pixels, drawn in zip(before, after, strict=True):
        assert drawn.shape == (*size, 3)
        image = EvalTransform()(torch.from_numpy(pixels).permute(2, 0, 1))[None]
        labels = trained.model.predict(image)[0].numpy()
        counts += np.bincount(labels.ravel(), minlength=3)
        expected = overlay(pixels, labels, trained.class_list).astype(int)
        assert np.abs(drawn - expected).mean() < 6
        assert np.abs(drawn - pixels.astype(int)).mean() > 12
    rows = list(csv.reader((output / "shares.csv").open(newline="")))
    assert rows[1][:2] == [path, str(5 * size[0] * size[1])]
    np.testing.assert_allclose([*map(float, rows[1][2:])], counts / counts.sum(), atol=1e-3)


def test_late_frames_stay_late(av: Any, checkpoint: str, tmp_path: Path) -> None:
    path = draw(tmp_path / "drive.mp4", (32, 32), skipped=2)
    predict(PredictConfig([path], checkpoint, str(tmp_path / "out")))
    _, times, _ = decode(path)
    assert np.ptp(np.diff(times)) > 0.05
    np.testing.assert_allclose(decode(tmp_path / "out" / "drive_overlay.mp4")[1], times, atol=1e-3)


def test_turned_video_comes_upright(av: Any, checkpoint: str, tmp_path: Path) -> None:
    """As phones write it: the matrix of the track's header turns it clockwise."""
    path = Path(draw(tmp_path / "phone.mp4", (32, 64)))
    data = bytearray(path.read_bytes())
    one = 1 << 16
    clockwise = struct.pack(">9i", 0, one, 0, -one, 0, 0, 32 * one, 0, 1 << 30)
    # After the name of the box: version, times, track, duration, layer, volume.
    matrix = data.index(b"tkhd") + 4 + 40
    data[matrix : matrix + 36] = clockwise
    path.write_bytes(data)
    predict(PredictConfig([str(path)], checkpoint, str(tmp_path / "out"), alpha=0))
    (before, *_), (after, *_) = decode(path)[0], decode(tmp_path / "out" / "phone_overlay.mp4")[0]
    assert after.shape == (64, 32, 3)
    assert np.abs(after - np.rot90(before, -1).astype(int)).mean() < 6


def test_bad_videos_are_named_at_the_end(
    av: Any, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = draw(tmp_path / "good.mp4", (32, 32))
    text, broken = tmp_path / "text.mp4", tmp_path / "broken.avi"
    text.write_text("no video")
    draw(broken, (32, 32), codec="png", pix_fmt="rgb24")
    data = broken.read_bytes()
    last = data.rindex(b"\x89PNG")
    broken.write_bytes(data[:last] + bytes(16) + data[last + 16 :])
    with av.open(str(tmp_path / "sound.mp4"), "w") as output:
        stream = output.add_stream("aac", rate=8000, layout="mono")
        silence = np.zeros((1, 1024), np.float32)
        frame = av.AudioFrame.from_ndarray(silence, "fltp", layout="mono")
        frame.rate = 8000
        output.mux(stream.encode(frame))
        output.mux(stream.encode())
    untimed = Path(draw(tmp_path / "stream.h264", (32, 32))).rename(tmp_path / "stream.mp4")
    bad = [str(path) for path in (text, broken, tmp_path / "sound.mp4", untimed)]
    with pytest.raises(SystemExit) as stop:
        main(["predict", *bad, good, "--checkpoint", checkpoint, "--output", f"{tmp_path}/out"])
    assert stop.value.code == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good_overlay.mp4"]
    printed = capsys.readouterr()
    lines = [line for line in printed.err.splitlines() if line.startswith("pspfast: ")]
    reasons = ("Invalid data", "Invalid data", "no video in this file", "the frames have no times")
    for line, path, reason in zip(lines, bad, reasons, strict=True):
        assert f"{path}: {reason}" in line
    assert "broken" not in printed.out


def test_without_pyav(checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "drive.mp4").touch()
    options = PredictConfig([str(tmp_path / "drive.mp4")], checkpoint, str(tmp_path / "out"))
    with pytest.raises(ValueError, match=r"drive\.mp4: .* pip install 'pspfast\[video\]'"):
        predict(options)
    assert not (tmp_path / "out").exists()

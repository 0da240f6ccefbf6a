"""Files that claim too much are refused before they take memory or hours."""

from __future__ import annotations

import re
import struct
import zlib
from fractions import Fraction
from pathlib import Path

import av
import pytest
from support.video_samples import numbered_image, read_number, steady, write_folder, write_video, x264

from videoseek.types import Clip
from videoseek.video import index as video_index
from videoseek.video import worker
from videoseek.video.decode import decode_clip, probe
from videoseek.video.errors import VideoError


def error_of(path: str | Path) -> VideoError:
    with pytest.raises(VideoError) as caught:
        info = probe(str(path))
        decode_clip(Clip(str(path), 0.0, 1.0, (0.0, info.duration_seconds), 56, 112, 1.0))
    assert caught.value.message.endswith(".")
    return caught.value


def claim_size(header: bytes, width: int, height: int) -> bytes:
    """A header chunk of PNG (name, 13 bytes, checksum) with another size."""
    header = header[:4] + struct.pack(">II", width, height) + header[12:17]
    return header + struct.pack(">I", zlib.crc32(header))


def bomb(path: Path, side: int) -> Path:
    """Frames of PNG that claim more than the header of their file, which says 112 x 64."""
    write_video(path, steady(3, 1), codec="png", pix_fmt="rgb24")
    data = path.read_bytes()
    path.write_bytes(re.sub(rb"IHDR.{17}", lambda header: claim_size(header[0], side, side), data, flags=re.DOTALL))
    return path


@pytest.mark.parametrize("side", [8193, 20_000, 100_000])
def test_decompression_bomb_in_a_video_takes_no_memory(tmp_path, side) -> None:
    worker.use_worker(60.0)
    try:
        error = error_of(bomb(tmp_path / "v.mov", side))
        (slot,) = worker.decoder()._idle.queue
        peak = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{slot._process.pid}/status").read_text())
    finally:
        worker.use_worker(None)
    assert error.code == "decode_failed" and int(peak[1]) < 200 * 1024


def test_one_frame_of_the_largest_size_is_held_once_in_each_form(tmp_path) -> None:
    """96 MiB as decoded, 192 MiB as RGB, and what FFmpeg holds to open the file."""
    path = write_video(tmp_path / "v.mp4", [0.0], size=(8192, 8192), options=x264(1, 0))
    worker.use_worker(60.0)
    try:
        decode_clip(Clip(str(path), 0.0, 1.0, (0.0, 0.0), 280, 280, 1.0))
        (slot,) = worker.decoder()._idle.queue
        peak = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{slot._process.pid}/status").read_text())
    finally:
        worker.use_worker(None)
    assert int(peak[1]) < 500 * 1024


def test_decompression_bomb_in_a_frame_folder_is_refused(tmp_path) -> None:
    for side, codes in ((9000, ["too_large"]), (100_000, ["too_large", "decode_failed"])):
        folder = write_folder(tmp_path / str(side), [1], ".png")
        data = (folder / "frame_1.png").read_bytes()
        start = data.index(b"IHDR")
        (folder / "frame_1.png").write_bytes(
            data[:start] + claim_size(data[start : start + 21], side, side) + data[start + 21 :]
        )
        error = error_of(folder)
        assert error.code in codes and str(folder) in error.message


def test_frames_up_to_the_limit_are_opened(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(video_index, "MAX_PIXELS", 480 * 640)
    assert probe(str(write_video(tmp_path / "v.mp4", steady(4, 4), size=(480, 640), options=x264(4)))).width == 640
    error = error_of(write_video(tmp_path / "w.mp4", steady(4, 4), size=(480, 704), options=x264(4)))
    assert error.code == "too_large" and "704 x 480" in error.message


def test_time_stamp_of_years_is_refused(tmp_path) -> None:
    path = tmp_path / "v.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=1)
        stream.width, stream.height, stream.pix_fmt = 112, 64, "yuvj420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for stamp in (0, 1000, 10 * 365 * 86400 * 1000):
            frame = av.VideoFrame.from_ndarray(numbered_image(1), format="rgb24")
            frame.pts, frame.time_base = stamp, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    error = error_of(path)
    assert error.code == "too_large" and "at most 48" in error.message


def test_scan_ends_at_the_limit_of_frames(tmp_path, monkeypatch) -> None:
    path = write_video(tmp_path / "v.mp4", steady(40, 10), options=x264(10))
    monkeypatch.setattr(video_index, "MAX_FRAMES", 39)
    error = error_of(path)
    assert error.code == "too_large" and "39" in error.message
    monkeypatch.setattr(video_index, "MAX_FRAMES", 40)
    path.touch()
    assert probe(str(path)).num_frames == 40


def test_folder_of_too_many_images_or_hours(tmp_path, monkeypatch) -> None:
    folder = write_folder(tmp_path / "f", range(5))
    monkeypatch.setattr(video_index, "MAX_FRAMES", 4)
    assert error_of(folder).code == "too_large"
    monkeypatch.setattr(video_index, "MAX_FRAMES", 5)
    monkeypatch.setattr(video_index, "MAX_HOURS", 1 / 3600)
    assert error_of(folder).code == "too_large"


def test_size_that_changes_in_mid_stream_is_shown_at_the_clips_size(tmp_path) -> None:
    """Broadcast recordings switch formats; every frame is brought to the size of the clip."""
    first = write_video(tmp_path / "a.ts", steady(20, 10), options=x264(5))
    second = write_video(tmp_path / "b.ts", steady(20, 10, 3.0), size=(128, 224), options=x264(5))
    path = tmp_path / "v.ts"
    path.write_bytes(first.read_bytes() + second.read_bytes())
    info = probe(str(path))
    assert (info.height, info.width, info.num_frames) == (64, 112, 40)
    frames = decode_clip(Clip(str(path), 0.0, 1.0, (1.0, 3.85), 56, 112, 1.0))
    assert [read_number(frame.numpy()) for frame in frames] == [10, 10]

"""Every unusable file ends as a VideoError with its code, and no file makes the library open another one."""

from __future__ import annotations

import os
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from support.video_samples import steady, write_video, x264

from videoseek.types import Clip
from videoseek.video.decode import decode_clip, probe
from videoseek.video.errors import VideoError


def code_of(path: Path | str) -> str:
    with pytest.raises(VideoError) as caught:
        probe(str(path))
    assert os.path.basename(str(path)) in caught.value.message and str(caught.value) == caught.value.message
    return caught.value.code


def sample(path: Path, num_frames: int = 60, **how) -> Path:
    return write_video(path, steady(num_frames, 10), options=x264(10), **how)


def write_tone(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.rate, frame.pts, frame.time_base = 16000, 0, Fraction(1, 16000)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("name", ["nothing.mp4", "no/such/folder.mp4", "nul\0byte.mp4", "x" * 300 + ".mp4"])
def test_missing_file_is_named(tmp_path, name) -> None:
    with pytest.raises(VideoError) as caught:
        probe(str(tmp_path / name))
    assert caught.value.code == "missing_file"


def test_empty_folder_and_pipe_are_refused(tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    assert code_of(tmp_path) == "no_frames"
    assert code_of(tmp_path / "pipe.mp4") == "missing_file"


@pytest.mark.parametrize("url", ["https://example.org/v.mp4", "concat:a.mp4|b.mp4", "pipe:0", "data:video/mp4,v.mp4"])
def test_urls_are_not_opened(url) -> None:
    assert code_of(url) == "missing_file"


@pytest.mark.parametrize("content", [b"", b"not a video", bytes(4096), b"\x00\x00\x00\x18ftypmp42"])
def test_other_content_is_refused(tmp_path, content) -> None:
    path = tmp_path / "v.mp4"
    path.write_bytes(content)
    assert code_of(path) == "not_video"


@pytest.mark.parametrize(
    "text",
    [
        "ffconcat version 1.0\nfile inner.mp4\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:6,\ninner.ts\n#EXT-X-ENDLIST\n",
        '<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><BaseURL>inner.mp4</BaseURL></MPD>',
    ],
    ids=["concat", "hls", "dash"],
)
def test_playlists_cannot_reach_other_files(tmp_path, text) -> None:
    sample(tmp_path / "inner.mp4")
    sample(tmp_path / "inner.ts")
    path = tmp_path / "list.mp4"
    path.write_text(text)
    assert code_of(path) == "not_video"


def test_audio_without_video_is_refused(tmp_path) -> None:
    assert code_of(write_tone(tmp_path / "tone.m4a")) == "not_video"


def test_unknown_codec_is_refused(tmp_path) -> None:
    path = sample(tmp_path / "v.mp4")
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzzz").replace(b"avcC", b"zzzC"))
    assert code_of(path) == "not_video"


def test_video_stream_without_frames_is_refused(tmp_path) -> None:
    path = tmp_path / "v.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        container.start_encoding()
    assert code_of(path) in ("no_frames", "not_video")


def test_name_that_looks_like_a_protocol_is_a_file(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    sample(tmp_path / "http:v.mp4")
    assert probe("http:v.mp4").num_frames == 60


def test_truncated_tail_yields_what_is_there(tmp_path) -> None:
    path = sample(tmp_path / "v.mkv")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    info = probe(str(path))
    assert 1 < info.num_frames < 60 and info.duration_seconds < 6
    clip = Clip(str(path), 0.0, 1.0, (0.0, 0.5), 56, 112, 2.0)
    assert decode_clip(clip).shape == (2, 56, 112, 3)


def test_lying_header_duration_is_ignored(tmp_path) -> None:
    path = sample(tmp_path / "v.mp4")
    data = bytearray(path.read_bytes())
    at = data.index(b"mvhd") + 4 + 4 + 8  # version and flags, two times
    scale, _ = struct.unpack_from(">II", data, at)
    struct.pack_into(">I", data, at + 4, scale * 9999)
    path.write_bytes(data)
    assert probe(str(path)).duration_seconds == pytest.approx(6.0, abs=0.01)


def test_damage_in_the_middle_is_an_error_not_another_moment(tmp_path) -> None:
    path = sample(tmp_path / "v.mp4", size=(240, 320))
    with av.open(str(path)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size and 2 <= p.pts * p.time_base < 4]
    data = bytearray(path.read_bytes())
    for position, size in packets:
        data[position : position + size] = bytes(size)
    path.write_bytes(data)
    sound = Clip(str(path), 0.0, 1.0, (0.5, 5.0), 56, 112, 2.0)
    assert decode_clip(sound).shape == (2, 56, 112, 3)
    with pytest.raises(VideoError) as caught:
        decode_clip(Clip(str(path), 3.0, 4.0, (3.0, 3.5), 56, 112, 2.0))
    assert caught.value.code == "decode_failed" and "3.000 s" in caught.value.message


def test_random_damage_ends_as_frames_or_as_a_named_error(tmp_path) -> None:
    whole = sample(tmp_path / "whole.mp4").read_bytes()
    rng = np.random.default_rng(0)
    outcomes = set()
    for trial in range(120):
        data = bytearray(whole)
        if trial % 3 == 0:
            data = data[: int(rng.integers(0, len(data)))]
        for position in rng.integers(0, max(len(data), 1), 1 + trial % 20):
            if data:
                data[position] ^= 1 << int(rng.integers(8))
        path = tmp_path / f"{trial}.mp4"
        path.write_bytes(data)
        try:
            duration = probe(str(path)).duration_seconds
            frames = decode_clip(Clip(str(path), 0.0, duration, (0.0, duration / 2), 56, 112, 1.0))
            assert frames.shape == (2, 56, 112, 3)
            outcomes.add("frames")
        except VideoError as error:
            outcomes.add(error.code)
    assert {"frames", "not_video"} <= outcomes


def test_errors_have_known_codes_only() -> None:
    with pytest.raises(ValueError, match="oops"):
        VideoError("oops", "v.mp4 is odd.")

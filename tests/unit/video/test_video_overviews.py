"""Overviews on disk: equal pixels, no decode when warm, bounded, damage decoded anew, shared by processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.video_samples import steady, write_video, x264

from videoseek.config import UsageError, VideoConfig
from videoseek.files import FolderBound
from videoseek.types import Clip
from videoseek.video import worker
from videoseek.video.decode import FRAME_CACHE, decode_clip, probe
from videoseek.video.quotas import crop_clip, overview_clip
from videoseek.video.service import start_video_service, stop_video_service

LIMITS = VideoConfig(max_frames=8, overview_tokens=64)


class Counting(worker.LocalDecoder):
    """Counts the decoded frames."""

    num_frames = 0

    def frames(self, *clip: object) -> np.ndarray:
        pixels = super().frames(*clip)
        self.num_frames += len(pixels)
        return pixels


@pytest.fixture
def videos(tmp_path: Path) -> list[str]:
    return [str(write_video(tmp_path / f"{i}.mp4", steady(32 + 8 * i, 4), options=x264(16))) for i in range(3)]


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    return tmp_path / "kept"


@pytest.fixture
def decoder(kept: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Counting]:
    start(kept)
    counting = Counting()
    monkeypatch.setattr(worker, "_decoder", counting)
    yield counting
    monkeypatch.undo()
    start_video_service(VideoConfig(stall_seconds=None), 1)
    stop_video_service()
    FRAME_CACHE.clear()


def start(folder: Path, gigabytes: float = 1.0) -> None:
    start_video_service(
        VideoConfig(overview_cache=str(folder), overview_cache_gigabytes=gigabytes, stall_seconds=None), 1
    )


def overview(video: str) -> Clip:
    return overview_clip(probe(video), LIMITS)


def test_a_second_epoch_decodes_no_overview_and_sees_the_same_pixels(videos: list[str], decoder: Counting) -> None:
    cold = [decode_clip(overview(video)) for video in videos]
    assert decoder.num_frames == sum(map(len, cold)) > 0
    warm = [decode_clip(overview(video)) for video in videos]
    assert decoder.num_frames == sum(map(len, cold))
    assert all(torch.equal(one, other) for one, other in zip(cold, warm, strict=True))


def test_crops_other_sizes_and_changed_films_are_decoded(videos: list[str], decoder: Counting, kept: Path) -> None:
    clip = overview(videos[0])
    first = decode_clip(clip)
    for other in (crop_clip(probe(videos[0]), 0.0, 4.0, "coarse", LIMITS), replace(clip, height=clip.height + 28)):
        before = decoder.num_frames
        decode_clip(other)
        assert decoder.num_frames == before + len(other.frame_seconds)
    os.utime(videos[0], ns=(1, 1))
    before = decoder.num_frames
    assert torch.equal(decode_clip(clip), first) and decoder.num_frames == before + len(first)
    assert len(list(kept.iterdir())) == 3  # the crop is not kept


def test_damage_is_logged_and_decoded_anew(videos, decoder: Counting, kept: Path, caplog) -> None:
    whole = decode_clip(overview(videos[0]))
    (file,) = kept.iterdir()
    content = file.read_bytes()
    for number, damaged in enumerate([b"", b"x", content[:-1], content + b"x", bytes(len(content))], 2):
        file.write_bytes(damaged)
        caplog.clear()
        assert torch.equal(decode_clip(overview(videos[0])), whole)
        assert decoder.num_frames == number * len(whole) and file.read_bytes() == content
        assert len(caplog.records) == 1 and videos[0] in caplog.text


def test_the_overview_unused_for_longest_is_removed(videos: list[str], decoder: Counting, kept: Path) -> None:
    sizes = [decode_clip(overview(video)).nbytes + 4 for video in videos]
    files = sorted(kept.iterdir(), key=lambda file: file.stat().st_mtime_ns)
    decode_clip(overview(videos[0]))  # used again
    start(kept, (sum(sizes) - 1) / 1e9)
    write_video(kept.parent / "new.mp4", steady(32, 4), options=x264(16))
    decode_clip(overview(str(kept.parent / "new.mp4")))
    assert files[0].exists() and not files[1].exists() and not files[2].exists()
    start(kept, 1e-9)  # one byte: nothing fits, nothing is written, the films are still read
    assert len(decode_clip(overview(videos[1]))) and not files[1].exists()


def test_processes_share_a_folder(videos: list[str], kept: Path) -> None:
    code = """
import sys
from pathlib import Path
from videoseek.config import VideoConfig
from videoseek.video import decode, overviews
from videoseek.video.quotas import overview_clip
decode.keep_overviews(overviews.OverviewStore(Path(sys.argv[1]), 10**9))
for _ in range(3):
    clips = [overview_clip(decode.probe(video), VideoConfig(max_frames=8)) for video in sys.argv[2:]]
    print([int(decode.decode_clip(clip).sum()) for clip in clips])
"""
    command = [sys.executable, "-c", code, str(kept), *videos]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    said = [run.communicate(timeout=60) for run in runs]
    assert {line for out, _ in said for line in out.splitlines()} == {said[0][0].splitlines()[0]}
    assert [error for _, error in said] == [b"", b""]
    assert len(list(kept.iterdir())) == len(videos)


def test_a_folder_that_cannot_be_made_is_refused_and_one_that_fills_up_is_named(videos, decoder, kept, caplog) -> None:
    with pytest.raises(UsageError, match="video.overview_cache .* must be a folder: "):
        start(Path(videos[0]))
    kept.rmdir()
    kept.write_text("no folder")
    assert len(decode_clip(overview(videos[0]))) and len(decode_clip(overview(videos[1])))
    assert sum("overviews are not kept in" in record.getMessage() for record in caplog.records) == 1


def test_a_bounded_folder_keeps_other_files_and_the_newest(tmp_path: Path) -> None:
    bound = FolderBound(tmp_path, "*.kept", 1000)
    (tmp_path / "mine.txt").write_bytes(bytes(5000))
    for number in range(12):
        (tmp_path / f"{number}.kept").write_bytes(bytes(100))
        os.utime(tmp_path / f"{number}.kept", ns=(number, number))
        bound.wrote(100)
    assert (
        sorted(int(file.stem) for file in tmp_path.glob("*.kept")) == [*range(2, 12)]
        and (tmp_path / "mine.txt").exists()
    )

"""The frame on screen at any second of any kind of file, also as ffmpeg itself extracts it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from support.video_samples import KINDS, read_number

from videoseek.config import VideoConfig
from videoseek.types import STRATEGIES, Clip
from videoseek.video.decode import decode_clip, load_index, probe
from videoseek.video.quotas import crop_clip

NUM_CASES = 2000 if os.environ.get("VIDEOSEEK_FULL") else 200
#: Containers round times to milliseconds: nearer to a change of frame than this, both are right. Half a frame is more.
ROUNDING_SECONDS = 0.001
POLICIES = {policy: VideoConfig(max_frames=12, frame_policy=policy) for policy in ("linspace", "uniform")}
FILES = [name for name, kind in KINDS.items() if not kind.folder_fps]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Callable[[str], str]:
    """Path of a sample by the name of its kind, written at first need."""
    return cache(lambda name: KINDS[name].write(tmp_path_factory.mktemp(name)))


def shown_numbers(name: str, clip: Clip) -> list[int]:
    frames = decode_clip(clip).numpy()
    return [read_number(frame) for frame in (frames[:, ::-1, ::-1] if name == "upside_down" else frames)]


def test_random_windows_show_the_frames_of_their_seconds(files) -> None:
    rng = np.random.default_rng(0)
    for case in range(NUM_CASES):
        name = list(KINDS)[case % len(KINDS)]
        info = probe(files(name))
        start, end = sorted(rng.uniform(0, info.duration_seconds, 2))
        policy, strategy = rng.choice(list(POLICIES)), rng.choice(STRATEGIES)
        clip = crop_clip(info, start, end, strategy, POLICIES[policy])
        last = float(load_index(files(name)).seconds([info.num_frames - 1])[0])
        for seconds, shown in zip(clip.frame_seconds, shown_numbers(name, clip), strict=True):
            around = (seconds - ROUNDING_SECONDS, seconds + ROUNDING_SECONDS)
            right = {KINDS[name].number_at(min(t, last + ROUNDING_SECONDS)) for t in around}
            assert shown in right, (case, name, policy, start, end, seconds)


def ffmpeg(*arguments: str) -> tuple[bytes, str]:
    command = ["ffmpeg", "-nostdin", "-threads", "1", *arguments]
    done = subprocess.run(command, capture_output=True, check=True, timeout=120)
    return done.stdout, done.stderr.decode(errors="replace")


needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")
RAW = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-")


@needs_ffmpeg
@pytest.mark.parametrize("name", [name for name in FILES if name != "four_hours"])
def test_frames_and_times_are_those_of_ffmpeg(files, name) -> None:
    info, index = probe(files(name)), load_index(files(name))
    raw, said = ffmpeg("-i", files(name), "-fps_mode", "passthrough", "-vf", "showinfo", *RAW)
    times = [float(text) for text in re.findall(r"\bn: *\d+ pts: *-?\d+ pts_time:(\S+)", said)]
    if name in ("avi_h264", "avi_mpeg4_b_frames"):
        # AVI stores no presentation times: ffmpeg begins as late as the decoder of B-frames does, a player at once.
        times = [seconds - times[0] for seconds in times]
    frames = np.frombuffer(raw, np.uint8).reshape(-1, info.height, info.width, 3)
    assert index.seconds(slice(None)).tolist() == pytest.approx(times, abs=ROUNDING_SECONDS)
    wanted = sorted(np.random.default_rng(2).choice(len(times), min(6, len(times)), replace=False).tolist())
    middles = [(times[i] + (times[i + 1] if i + 1 < len(times) else times[i])) / 2 for i in wanted]
    own = Clip(files(name), 0.0, 1.0, tuple(t for t in middles for _ in range(2)), 56, 112, 1.0)
    theirs = frames[wanted][:, ::-1, ::-1] if name == "upside_down" else frames[wanted]
    assert shown_numbers(name, own)[::2] == [read_number(frame) for frame in theirs]


@needs_ffmpeg
@pytest.mark.parametrize("name", ["b_frames", "open_gop", "webm_vp9", "hevc", "variable_rate_mkv", "four_hours"])
def test_single_frames_are_those_that_ffmpeg_seeks_to(files, name) -> None:
    """`-ss T` takes the first frame at or after T: a little before a frame's own time, that frame."""
    info, index = probe(files(name)), load_index(files(name))
    for frame_index in np.random.default_rng(3).integers(1, info.num_frames, 2).tolist():
        before, seconds = index.seconds([frame_index - 1, frame_index]).tolist()
        seek = f"{max(seconds - 0.004, (before + seconds) / 2):.4f}"
        raw, _ = ffmpeg("-ss", seek, "-i", files(name), "-frames:v", "1", *RAW)
        frame = np.frombuffer(raw, np.uint8).reshape(info.height, info.width, 3)
        own = Clip(files(name), 0.0, 1.0, (seconds, seconds), 56, 112, 1.0)
        assert shown_numbers(name, own)[0] == read_number(frame), (frame_index, seek)

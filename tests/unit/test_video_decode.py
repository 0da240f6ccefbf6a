"""The right pixels at the right presentation time, from every kind of file, at little cost."""

from __future__ import annotations

from bisect import bisect_right
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from video_samples import numbered_image, read_number, steady, write_video, x264

from videoseek.types import Clip
from videoseek.video.decode import FRAME_CACHE, decode_clip, probe, read_frames
from videoseek.video.reader import VideoReader

IRREGULAR = [0.0, 0.04, 0.08, 0.5, 0.54, 1.5, 1.51, 1.52, 3.0, 3.033, 3.9, 4.0, 4.1, 4.11, 6.0, 6.5, 6.52, 7.0]
KINDS = {
    "b_frames": ("v.mp4", steady(120, 10), {"options": x264(40)}),
    "one_keyframe": ("v.mp4", steady(120, 10), {"options": x264(1000)}),
    "all_keyframes": ("v.mp4", steady(60, 10), {"options": x264(1, 0)}),
    "tiny_gop": ("v.mp4", steady(60, 10), {"options": x264(2, 1)}),
    "open_gop": ("v.mp4", steady(120, 10), {"options": x264(20, 3, **{"flags": "-cgop"}) | {"x264opts": "open-gop"}}),
    "matroska": ("v.mkv", steady(120, 30), {"options": x264(25)}),
    "transport_stream": ("v.ts", steady(120, 25), {"options": x264(25)}),
    "avi_mpeg4": ("v.avi", steady(60, 10), {"codec": "mpeg4", "options": {"g": "12"}}),
    "avi_h264": ("v.avi", steady(60, 10), {"options": x264(12)}),
    "webm_vp9": ("v.webm", steady(30, 10), {"codec": "libvpx-vp9", "options": {"cpu-used": "8", "g": "10"}}),
    "hevc": ("v.mp4", steady(40, 10), {"codec": "libx265", "options": {"x265-params": "log-level=none:keyint=15"}}),
    "mpeg4_b_frames": ("v.mkv", steady(60, 25), {"codec": "mpeg4", "options": {"bf": "2", "g": "12"}}),
    "ten_bit": ("v.mp4", steady(40, 10), {"pix_fmt": "yuv420p10le", "options": x264(10)}),
    "odd_size": ("v.mp4", steady(40, 10), {"size": (63, 113), "pix_fmt": "yuv444p", "options": x264(10)}),
    "variable_rate_mp4": ("v.mp4", IRREGULAR, {"options": x264(5, 2)}),
    "variable_rate_mkv": ("v.mkv", IRREGULAR, {"options": x264(5, 2)}),
    "one_frame_per_second": ("v.mp4", steady(20, 1), {"options": x264(250)}),
}


def clip_at(path: Path, seconds: list[float], height: int = 56, width: int = 112) -> Clip:
    times = tuple(seconds) if len(seconds) % 2 == 0 else (*seconds, seconds[-1])
    return Clip(str(path), min(times), max(times) + 1, times, height, width, 1.0)


@pytest.fixture(scope="module", params=list(KINDS), ids=list(KINDS))
def sample(request, tmp_path_factory) -> tuple[Path, list[float]]:
    name, times, how = KINDS[request.param]
    return write_video(tmp_path_factory.mktemp(request.param) / name, times, **how), times


def test_random_instants_show_the_last_frame_that_began(sample) -> None:
    path, times = sample
    rng = np.random.default_rng(0)
    for _ in range(12):
        # Containers round to milliseconds: stay off the very instants of change here, see the next test for those.
        asked = sorted(t for t in rng.uniform(0, times[-1] + 0.5, 6) if min(abs(t - x) for x in times) > 0.002)
        frames = decode_clip(clip_at(path, asked))
        shown = [read_number(frame.numpy()) for frame in frames[: len(asked)]]
        assert shown == [bisect_right(times, t) - 1 for t in asked], asked


def test_presentation_times_of_the_file_give_exactly_their_frames(sample) -> None:
    path, times = sample
    with VideoReader(str(path)) as reader:
        seconds = reader.index.seconds(slice(None)).tolist()
    assert seconds == pytest.approx(times, abs=0.001)
    frames = decode_clip(clip_at(path, seconds))
    assert [read_number(frame.numpy()) for frame in frames[: len(times)]] == list(range(len(times)))


def test_sought_frames_equal_sequentially_decoded_ones_bit_for_bit(sample) -> None:
    path, times = sample
    with av.open(str(path)) as container:
        whole = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    rng = np.random.default_rng(1)
    for count in (1, 2, 3, 8):
        wanted = sorted(rng.choice(len(times), count, replace=False).tolist())
        with VideoReader(str(path)) as reader:
            for index, frame in zip(wanted, reader.frames(wanted), strict=True):
                assert np.array_equal(frame.to_ndarray(format="rgb24"), whole[index]), (wanted, index)


def test_probe_reports_true_duration_rate_and_size(sample) -> None:
    path, times = sample
    info = probe(str(path))
    height, width = (63, 113) if path.parent.name.startswith("odd_size") else (64, 112)
    assert (info.height, info.width, info.num_frames) == (height, width, len(times))
    last_gap = times[-1] - times[-2]
    assert times[-1] < info.duration_seconds <= times[-1] + max(last_gap, 1.0) + 0.01
    assert info.average_fps == pytest.approx(len(times) / info.duration_seconds, rel=0.01)


@pytest.mark.parametrize("turn", [90, 180, 270])
def test_rotation_is_applied(tmp_path, turn) -> None:
    path = write_video(tmp_path / "v.mp4", steady(20, 10), size=(112, 168), options=x264(5), rotation=turn)
    info = probe(str(path))
    assert (info.height, info.width) == ((112, 168) if turn == 180 else (168, 112))
    upright = np.rot90(numbered_image(9, 112, 168), turn // 90)
    frame = decode_clip(clip_at(path, [0.9], info.height, info.width))[0].numpy()
    assert np.abs(frame.astype(int) - upright).mean() < 12


def test_times_count_from_where_a_player_starts(tmp_path) -> None:
    path = write_video(tmp_path / "v.ts", steady(50, 10, start_seconds=20.0), options=x264(10))
    assert probe(str(path)).duration_seconds == pytest.approx(5.0, abs=0.01)
    frames = decode_clip(clip_at(path, [0.05, 2.55]))
    assert [read_number(frame.numpy()) for frame in frames] == [0, 25]


def test_recording_cut_in_mid_stream_begins_at_its_first_keyframe(tmp_path) -> None:
    whole = write_video(tmp_path / "whole.ts", steady(100, 10), options=x264(20)).read_bytes()
    path = tmp_path / "cut.ts"
    packet_bytes = 188
    path.write_bytes(whole[len(whole) // 4 // packet_bytes * packet_bytes :])
    info = probe(str(path))
    frames = decode_clip(clip_at(path, [0.0, info.duration_seconds]))
    first, last = (read_number(frame.numpy()) for frame in frames)
    assert first in (20, 40) and last == 99


def test_resize_is_pillows_bicubic_with_antialias(tmp_path) -> None:
    from PIL import Image

    path = write_video(tmp_path / "v.mp4", steady(4, 4), size=(240, 320), options=x264(4))
    with av.open(str(path)) as container:
        first = next(container.decode(video=0)).to_ndarray(format="rgb24")
    expected = np.asarray(Image.fromarray(first).resize((84, 56), Image.Resampling.BICUBIC))
    assert np.array_equal(decode_clip(clip_at(path, [0.0], 56, 84))[0].numpy(), expected)


def test_few_frames_of_a_long_video_cost_few_decoded_frames(tmp_path) -> None:
    path = write_video(tmp_path / "v.mp4", steady(4800, 8), options=x264(50))
    crop = [300 + 0.5 * i for i in range(8)]
    spread = [37.0 + 75 * i for i in range(8)]
    for seconds, most in ((crop, 50 + 28 + 8), (spread, 8 * 55)):
        with VideoReader(str(path)) as reader:
            wanted = [reader.index.frame_at(t) for t in seconds]
            shown = [read_number(frame.to_ndarray(format="rgb24")) for frame in reader.frames(wanted)]
            assert shown == [int(8 * t) for t in seconds]
            assert reader.num_decoded <= most


def test_repeated_times_give_repeated_frames(tmp_path) -> None:
    path = write_video(tmp_path / "v.mp4", steady(8, 4), options=x264(4))
    frames = decode_clip(clip_at(path, [1.0, 1.0, 1.1, 99.0]))
    assert [read_number(frame.numpy()) for frame in frames] == [4, 4, 4, 7]


def test_read_frames_is_served_from_memory(tmp_path) -> None:
    path = write_video(tmp_path / "v.mp4", steady(8, 4), options=x264(4))
    clip = clip_at(path, [0.0, 1.0])
    first = read_frames(clip)
    path.unlink()
    assert read_frames(clip_at(path, [0.0, 1.0])) is first
    assert first.dtype == torch.uint8 and first.shape == (2, 56, 112, 3) and clip in FRAME_CACHE


def test_a_changed_file_is_probed_again(tmp_path) -> None:
    path = write_video(tmp_path / "v.mp4", steady(8, 4), options=x264(4))
    assert probe(str(path)).duration_seconds == 2.0
    write_video(path, steady(20, 4), options=x264(4))
    assert probe(str(path)).duration_seconds == 5.0

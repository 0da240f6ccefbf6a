"""The right pixels at the right presentation time, from every kind of file, at little cost."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from av.stream import Disposition
from support.video_samples import (
    HEIGHT,
    KINDS,
    LONG_FILM_GOP,
    WIDTH,
    numbered_image,
    read_number,
    steady,
    write_long_film,
    write_video,
    x264,
)

from videoseek.types import Clip
from videoseek.video.decode import FRAME_CACHE, decode_clip, load_index, probe, read_frames
from videoseek.video.errors import VideoError
from videoseek.video.index import VideoIndex
from videoseek.video.packets import DisposableTest
from videoseek.video.pixels import shown_pixels
from videoseek.video.reader import DamagedError, VideoReader, decode_frames

#: What a file reader is held to bit by bit; a frame folder has neither seeks nor a decoder.
FILES = [name for name, kind in KINDS.items() if not kind.folder_fps]


def clip_at(path: Path | str, seconds: list[float], height: int = 56, width: int = 112) -> Clip:
    times = tuple(seconds) if len(seconds) % 2 == 0 else (*seconds, seconds[-1])
    return Clip(str(path), min(times), max(times) + 1, times, height, width, 1.0)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Callable[[str], str]:
    """Path of a sample by the name of its kind, written at first need."""
    return cache(lambda name: KINDS[name].write(tmp_path_factory.mktemp(name)))


@pytest.mark.parametrize("name", FILES)
def test_presentation_times_of_the_file_give_exactly_their_frames(files, name) -> None:
    seconds = load_index(files(name)).seconds(slice(None)).tolist()
    assert seconds == pytest.approx(KINDS[name].times[: len(seconds)], abs=0.001)
    frames = decode_clip(clip_at(files(name), seconds)).numpy()[: len(seconds)]
    if name == "upside_down":
        frames = frames[:, ::-1, ::-1]
    assert [read_number(frame) for frame in frames] == list(range(len(seconds)))


@pytest.mark.parametrize("decode_threads", [1, 3])
@pytest.mark.parametrize("name", FILES)
def test_sought_frames_equal_sequentially_decoded_ones_bit_for_bit(files, name, decode_threads) -> None:
    rng = np.random.default_rng(1)
    with av.open(files(name)) as container:
        whole = [shown_pixels(frame) for _, frame in zip(range(300), container.decode(video=0), strict=False)]
    for count in (1, 2, 3, 8):
        wanted = sorted(rng.choice(len(whole), min(count, len(whole)), replace=False).tolist())
        with VideoReader(files(name), decode_threads) as reader:
            if name == "open_gop" and decode_threads > 1:
                # Frames that refer to what lies before a seek are told from damage by one thread only.
                with suppress(DamagedError):
                    list(reader.frames(wanted))
                continue
            for index, frame in zip(wanted, reader.frames(wanted), strict=True):
                assert np.array_equal(shown_pixels(frame), whole[index]), (wanted, index)


@pytest.mark.parametrize("name", [name for name in FILES if name != "truncated_tail"])
def test_probe_reports_true_duration_rate_and_size(files, name) -> None:
    times, info = KINDS[name].times, probe(files(name))
    height, width = KINDS[name].how.get("size", (HEIGHT, WIDTH))
    assert (info.height, info.width, info.num_frames) == (height, width, len(times))
    last_gap = times[-1] - times[-2] if len(times) > 1 else 1.0
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


@pytest.mark.parametrize("name", ["v.mp4", "v.mov"])
def test_film_cut_without_encoding_begins_where_it_was_cut(tmp_path, name) -> None:
    """Its edit list passes over the pictures from the last keyframe to the cut; what is shown first needs them."""
    path = write_video(tmp_path / "whole.mp4", steady(100, 10), options=x264(60))
    with av.open(str(path)) as old, av.open(str(tmp_path / name), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.dts is not None:
                packet.pts -= round(2.5 / packet.time_base)
                packet.dts -= round(2.5 / packet.time_base)
                packet.stream = stream
                new.mux(packet)
    assert probe(str(tmp_path / name)).duration_seconds == pytest.approx(7.5, abs=0.01)
    seconds = [0.0, 0.1, 1.0, 3.4, 3.6, 7.4]
    frames = decode_clip(clip_at(tmp_path / name, seconds))
    assert [read_number(frame.numpy()) for frame in frames] == [25 + round(10 * t) for t in seconds]


def test_resize_is_pillows_bicubic_with_antialias(tmp_path) -> None:
    from PIL import Image

    path = write_video(tmp_path / "v.mp4", steady(4, 4), size=(240, 320), options=x264(4))
    with av.open(str(path)) as container:
        first = next(container.decode(video=0)).to_ndarray(format="rgb24")
    expected = np.asarray(Image.fromarray(first).resize((84, 56), Image.Resampling.BICUBIC))
    assert np.array_equal(decode_clip(clip_at(path, [0.0], 56, 84))[0].numpy(), expected)


def write_one_color(path: Path, yuv: tuple[int, int, int], height: int, tag: str = "") -> Path:
    """Two frames of one colour, BT.709 or BT.601 as `tag` says, or untagged."""
    width = height * 16 // 9 // 2 * 2
    with av.open(str(path), "w") as container:
        options = x264(1, 0)
        options["x264-params"] += f":colormatrix={tag}" if tag else ""
        stream = container.add_stream("libx264", rate=10, options=options)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        planes = np.empty((height * 3 // 2, width), np.uint8)
        planes[:height] = yuv[0]
        planes[height : height * 5 // 4] = yuv[1]
        planes[height * 5 // 4 :] = yuv[2]
        for number in range(2):
            frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


#: Pure red in studio range: ITU-R BT.709 (luma weight of red 0.2126) and BT.601 (0.299).
RED_709, RED_601 = (63, 102, 240), (81, 90, 240)


@pytest.mark.parametrize(
    ("height", "tag", "red"),
    [(720, "", RED_709), (704, "", RED_601), (720, "smpte170m", RED_601), (704, "bt709", RED_709)],
)
def test_untagged_colors_are_bt709_from_720_lines_on(tmp_path, height, tag, red) -> None:
    path = write_one_color(tmp_path / "v.mp4", red, height, tag)
    pixels = decode_clip(clip_at(path, [0.0], 28, 56)).numpy().reshape(-1, 3)
    assert np.abs(pixels.astype(int) - (255, 0, 0)).max() <= 4


def test_few_frames_of_a_long_video_cost_few_decoded_frames(tmp_path) -> None:
    path = write_video(tmp_path / "v.mp4", steady(4800, 8), options=x264(50))
    crop = [300 + 0.5 * i for i in range(8)]
    spread = [37.0 + 75 * i for i in range(8)]
    for seconds, most in ((crop, 50 + 28 + 8), (spread, 8 * 55)):
        with VideoReader(str(path)) as reader:
            wanted = [reader.index.frame_at(t) for t in seconds]
            shown = [read_number(shown_pixels(frame)) for frame in reader.frames(wanted)]
            assert shown == [int(8 * t) for t in seconds]
            assert reader.num_decoded <= most


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", ["b_frames", "hevc", "webm_vp9", "webm_av1"])
def test_damaged_files_give_the_same_pixels_with_more_threads(tmp_path, files, name) -> None:
    whole = Path(files(name)).read_bytes()
    rng = np.random.default_rng(0)
    num_errors = 0
    for trial in range(60):
        data = bytearray(whole)
        for position in rng.integers(0, len(data), 1 + trial % 20):
            data[position] ^= 1 << int(rng.integers(8))
        path = tmp_path / f"{trial}{Path(files(name)).suffix}"
        path.write_bytes(data)
        outcomes = [outcome_of(path, decode_threads) for decode_threads in (1, 3)]
        assert outcomes[0] == outcomes[1], path.name
        num_errors += isinstance(outcomes[0], str)
    assert 0 < num_errors < 60


def outcome_of(path: Path, decode_threads: int) -> str | bytes:
    """The message of the error, or the pixels."""
    try:
        return decode_frames(str(path), [0.35 * i for i in range(16)], 56, 112, decode_threads).tobytes()
    except VideoError as error:
        return error.message


def num_needed(index: VideoIndex, frame_indices: list[int]) -> int:
    """Frames from the keyframe of each wanted frame up to it, those that several wanted frames share counted once."""
    needed: set[int] = set()
    for frame_index in frame_indices:
        key = int(np.searchsorted(index.keyframes, index.stamps[frame_index], side="right")) - 1
        needed.update(range(int(np.searchsorted(index.stamps, index.keyframes[key])), frame_index + 1))
    return len(needed)


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".ts"])
@pytest.mark.parametrize("wanted", ["spread", "crop", "keyframes"])
def test_three_hour_film_decodes_what_the_wanted_frames_need(tmp_path, suffix, wanted) -> None:
    path = write_long_film(tmp_path / f"v{suffix}", 3 * 3600 * 5, fps=5)
    with VideoReader(str(path)) as reader:
        last = reader.index.info.num_frames - 1
        at_keys = np.searchsorted(reader.index.stamps, reader.index.keyframes).tolist()
        frames = {
            "spread": np.linspace(0, last, 64).round().astype(int).tolist(),
            "crop": [20_000 + 3 * i for i in range(8)],
            "keyframes": at_keys[::4],
        }[wanted]
        shown = [read_number(shown_pixels(frame)) for frame in reader.frames(frames)]
        assert shown == [i % (8 * LONG_FILM_GOP) for i in frames]
        needed = num_needed(reader.index, frames)
        assert len(frames) <= reader.num_decoded <= (len(frames) if wanted == "keyframes" else needed)
        # Two of three pictures are B-frames that nothing refers to, so even less is decoded.
        assert wanted == "keyframes" or reader.num_decoded < 0.75 * needed


@pytest.mark.parametrize("name", [name for name in FILES if not name.startswith("avi")])
def test_every_kind_is_decoded_from_the_right_keyframe(files, name) -> None:
    with VideoReader(files(name)) as reader:
        for frames in ([reader.index.info.num_frames // 2], list(range(0, reader.index.info.num_frames, 7))):
            before = reader.num_decoded
            assert len(list(reader.frames(frames))) == len(frames)
            # A frame may refer to one that is shown up to three frames later, and to the keyframe of an open group.
            assert reader.num_decoded - before <= num_needed(reader.index, frames) + 4 * len(frames)


def write_two_streams(path: Path, default: int) -> Path:
    """The first stream lasts 2 s, the second 5 s; one of them is the default."""
    with av.open(str(path), "w") as container:
        streams = []
        for number in range(2):
            stream = container.add_stream("libx264", rate=10, options=x264(10))
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            stream.disposition = Disposition.default if number == default else Disposition(0)
            streams.append(stream)
        for stream, num_frames in zip(streams, (20, 50), strict=True):
            for number in range(num_frames):
                frame = av.VideoFrame.from_ndarray(numbered_image(number), format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, 10)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize(("default", "num_frames"), [(0, 20), (1, 50)])
def test_default_stream_is_read(tmp_path, suffix, default, num_frames) -> None:
    path = write_two_streams(tmp_path / f"v{suffix}", default)
    assert probe(str(path)).num_frames == num_frames
    frames = decode_clip(clip_at(path, [0.5, 1.5]))
    assert [read_number(frame.numpy()) for frame in frames] == [5, 15]


@pytest.mark.slow
def test_ten_minutes_of_full_hd_decode_what_the_wanted_frames_need(tmp_path) -> None:
    path = write_long_film(tmp_path / "v.mp4", 600 * 25, fps=25, size=(1080, 1920), num_groups=1)
    with VideoReader(str(path)) as reader:
        frames = np.linspace(0, 600 * 25 - 1, 64).round().astype(int).tolist()
        shown = [read_number(shown_pixels(frame)) for frame in reader.frames(frames)]
        assert shown == [i % LONG_FILM_GOP for i in frames]
        assert reader.num_decoded <= 1.1 * num_needed(reader.index, frames)


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


@pytest.mark.parametrize(("name", "slice_head"), [("h264", 0x01), ("hevc", 0x00)])
def test_a_packet_with_an_unreadable_length_is_not_disposable(name: str, slice_head: int) -> None:
    """A disposable slice of 3 bytes alone; then the same slice before a length that leads beyond the packet."""
    test = DisposableTest.__new__(DisposableTest)
    test._codec, test._length_bytes = name, 4
    unit = bytes([slice_head, 0, 0])
    packet = len(unit).to_bytes(4) + unit
    assert test(av.Packet(packet)) is True
    assert test(av.Packet(packet + (99).to_bytes(4) + b"\0")) is False

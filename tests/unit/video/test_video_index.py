"""The index of a file: from the tables of an MP4 as from all of its packets, and kept on disk for the next process."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from support.video_samples import KINDS, steady, write_long_film, write_video, x264

from videoseek.video import index as video_index
from videoseek.video import index_store, reader
from videoseek.video.decode import load_index, probe
from videoseek.video.errors import VideoError
from videoseek.video.index import VideoIndex, open_video
from videoseek.video.mp4_table import PacketTable, read_table

MP4_KINDS = [name for name, kind in KINDS.items() if kind.name.endswith(".mp4")]
COLUMNS = ("presentation", "decoding", "is_keyframe", "is_discard")


def both_tables(path: Path | str) -> tuple[PacketTable | None, PacketTable]:
    """From the boxes, and from all packets."""
    with open_video(str(path)) as (container, stream):
        from_boxes = read_table(str(path), container, stream, video_index.MAX_FRAMES)
    with open_video(str(path)) as (container, stream):
        return from_boxes, video_index._read_packets(container, stream)


def assert_equal(first: PacketTable, second: PacketTable) -> None:
    for column in COLUMNS:
        assert np.array_equal(getattr(first, column), getattr(second, column)), column
    assert first.last_duration == second.last_duration


@pytest.mark.parametrize("name", MP4_KINDS)
def test_tables_of_an_mp4_give_what_its_packets_give(tmp_path, name) -> None:
    from_boxes, from_packets = both_tables(KINDS[name].write(tmp_path))
    assert (from_boxes is None) == (name == "fragmented")
    if from_boxes is not None:
        assert_equal(from_boxes, from_packets)


@pytest.mark.parametrize("flags", ["negative_cts_offsets", "faststart", "use_metadata_tags"])
@pytest.mark.parametrize("start_seconds", [0.0, 3.0])
def test_tables_with_other_offsets_and_starts(tmp_path, flags, start_seconds) -> None:
    path = write_video(
        tmp_path / "v.mp4",
        steady(60, 10, start_seconds),
        options=x264(20),
        sound=True,
        container_options={"movflags": flags},
    )
    from_boxes, from_packets = both_tables(path)
    assert from_boxes is not None
    assert_equal(from_boxes, from_packets)


def test_tables_after_a_cut_without_encoding(tmp_path) -> None:
    path = write_video(tmp_path / "whole.mp4", steady(100, 10), options=x264(60))
    with av.open(str(path)) as old, av.open(str(tmp_path / "cut.mp4"), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.dts is not None:
                packet.pts -= round(2.5 / packet.time_base)
                packet.dts -= round(2.5 / packet.time_base)
                packet.stream = stream
                new.mux(packet)
    from_boxes, from_packets = both_tables(tmp_path / "cut.mp4")
    assert from_boxes is not None and from_boxes.is_discard.any()
    assert_equal(from_boxes, from_packets)


def test_file_without_its_tail_is_read_packet_by_packet(tmp_path) -> None:
    how = {"options": x264(10), "container_options": {"movflags": "faststart"}}
    path = write_video(tmp_path / "v.mp4", steady(60, 10), **how)
    path.write_bytes(path.read_bytes()[:-1000])
    from_boxes, from_packets = both_tables(path)
    assert from_boxes is None and 0 < len(from_packets.presentation) < 60


def test_damaged_tables_are_those_of_the_packets_or_are_not_used(tmp_path) -> None:
    whole = write_video(tmp_path / "whole.mp4", steady(60, 10), options=x264(20)).read_bytes()
    header = whole.index(b"moov") - 4
    rng = np.random.default_rng(0)
    num_used = 0
    for trial in range(200):
        data = bytearray(whole)
        for position in rng.integers(header, len(data), 1 + trial % 4):
            data[position] ^= 1 << int(rng.integers(8))
        path = tmp_path / f"{trial}.mp4"
        path.write_bytes(data)
        try:
            from_boxes, from_packets = both_tables(path)
        except VideoError:
            continue
        if from_boxes is not None:
            assert_equal(from_boxes, from_packets)
            num_used += 1
    assert 20 < num_used < 200


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Where the indices are kept in this test."""
    monkeypatch.setenv("VIDEOSEEK_CACHE", str(tmp_path / "kept"))
    forget()
    return tmp_path / "kept" / "video_index"


def forget() -> None:
    """As in another process."""
    reader._read_index.cache_clear()


def stored_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def assert_same_index(first: VideoIndex, second: VideoIndex) -> None:
    for name in ("info", "start_stamp", "time_base", "decoder_lag"):
        assert getattr(first, name) == getattr(second, name)
    for name in ("stamps", "keyframes", "seek_stamps"):
        assert np.array_equal(getattr(first, name), getattr(second, name))
        assert getattr(second, name).dtype == np.int64


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if not kind.folder_fps])
def test_stored_index_is_the_scanned_one(tmp_path, folder, name, monkeypatch) -> None:
    path = KINDS[name].write(tmp_path)
    scanned = load_index(path)
    forget()
    monkeypatch.setattr(reader, "scan_file", never)
    assert_same_index(scanned, load_index(path))
    assert len(stored_files(folder)) == 1


def never(path: str) -> VideoIndex:
    raise AssertionError(f"{path} should not be scanned")


def test_another_name_of_the_same_file_finds_its_index(tmp_path, folder, monkeypatch) -> None:
    path = write_video(tmp_path / "v.mp4", steady(8, 4))
    (tmp_path / "link.mp4").symlink_to(path)
    load_index(str(path))
    monkeypatch.setattr(reader, "scan_file", never)
    assert load_index(str(tmp_path / "link.mp4")).info.path == str(tmp_path / "link.mp4")


@pytest.mark.parametrize("change", ["content", "touch"])
def test_changed_file_is_scanned_again(tmp_path, folder, change) -> None:
    path = write_video(tmp_path / "v.mp4", steady(8, 4))
    load_index(str(path))
    forget()
    if change == "content":
        write_video(path, steady(12, 4))
    else:
        os.utime(path, ns=(1, 1))
    assert load_index(str(path)).info.num_frames == (12 if change == "content" else 8)
    assert len(stored_files(folder)) == 1


def test_damaged_index_is_logged_ignored_and_written_anew(tmp_path, folder, caplog) -> None:
    path = str(write_video(tmp_path / "v.mp4", steady(8, 4)))
    whole = load_index(path)
    (stored,) = stored_files(folder)
    text = stored.read_bytes()
    damaged = [b"", b"{}", text[:50], text[:-10], text.replace(b'"width": 112', b'"width": 113'), bytes(len(text))]
    for content in damaged:
        stored.write_bytes(content)
        forget()
        caplog.clear()
        assert_same_index(whole, load_index(path))
        assert len(caplog.records) == 1 and path in caplog.text
        assert stored.read_bytes() == text


def test_index_of_another_version_is_written_anew(tmp_path, folder, monkeypatch, caplog) -> None:
    path = str(write_video(tmp_path / "v.mp4", steady(8, 4)))
    load_index(path)
    (stored,) = stored_files(folder)
    before = stored.read_bytes()
    monkeypatch.setattr(index_store, "VERSION", 2)
    forget()
    assert load_index(path).info.num_frames == 8
    assert stored.read_bytes() != before and not caplog.records


def test_folder_that_cannot_be_written_to_is_named_once(tmp_path, monkeypatch, caplog) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("VIDEOSEEK_CACHE", str(tmp_path / "file"))
    for name in ("a.mp4", "b.mp4"):
        assert load_index(str(write_video(tmp_path / name, steady(8, 4)))).info.num_frames == 8
    assert [str(tmp_path / "file") in record.getMessage() for record in caplog.records].count(True) == 1


def test_the_folder_of_indices_is_bounded(tmp_path, folder, monkeypatch) -> None:
    load_index(str(write_video(tmp_path / "0.mp4", steady(8, 4))))
    (first,) = stored_files(folder)
    monkeypatch.setattr(index_store, "MAX_STORED_BYTES", round(2.5 * first.stat().st_size))
    for number in range(1, 5):
        load_index(str(write_video(tmp_path / f"{number}.mp4", steady(8, 4))))
    assert len(stored_files(folder)) == 2 and not first.exists()


def test_empty_variable_turns_the_stored_index_off(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("VIDEOSEEK_CACHE", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    forget()
    load_index(str(write_video(tmp_path / "v.mp4", steady(8, 4))))
    assert [path.name for path in tmp_path.iterdir()] == ["v.mp4"]


def test_many_processes_share_the_folder(tmp_path, folder) -> None:
    paths = [str(write_video(tmp_path / f"{i}.mp4", steady(8 + i, 4))) for i in range(4)]
    code = """
import sys
from videoseek.video.reader import read_index
print([read_index(path).info.num_frames for path in sys.argv[1:] * 3])
"""
    runs = [
        subprocess.Popen([sys.executable, "-c", code, *paths], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(4)
    ]
    for run in runs:
        said, errors = run.communicate(timeout=60)
        assert json.loads(said) == [8, 9, 10, 11] * 3 and errors == b""
    assert len(stored_files(folder)) == 4


def num_bytes_read(work: Callable[[], object]) -> int:
    def count() -> int:
        return int(re.search(r"rchar: (\d+)", Path("/proc/self/io").read_text())[1])

    before = count()
    work()
    return count() - before


def test_second_opening_of_a_large_film_reads_little(tmp_path, folder) -> None:
    num_frames, size = 160, (720, 1280)
    path = tmp_path / "v.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("rawvideo", rate=25)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((size[0] * 3 // 2, size[1]), np.uint8), format="yuv420p")
        for number in range(num_frames):
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
    assert path.stat().st_size > 200 * 2**20
    first = num_bytes_read(lambda: probe(str(path)))
    forget()
    second = num_bytes_read(lambda: probe(str(path)))
    assert first > 200 * 2**20 and second < 2**16


def test_index_of_a_long_film_is_small(tmp_path, folder) -> None:
    path = str(write_long_film(tmp_path / "v.mp4", 3 * 3600 * 25, fps=25, num_groups=1))
    first = num_bytes_read(lambda: probe(path))
    forget()
    assert num_bytes_read(lambda: probe(path)) < 2**16
    # An MP4 is opened by its tables alone: less than all of it.
    assert first < Path(path).stat().st_size

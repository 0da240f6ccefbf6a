"""Frame folders: a number is a time, and nothing outside the folder is opened."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image
from support.video_samples import numbered_image, read_number, write_folder

from videoseek.config import VideoConfig
from videoseek.tools.crop import VideoCrop
from videoseek.types import Call, Clip
from videoseek.video.decode import decode_clip, load_index, probe
from videoseek.video.errors import VideoError
from videoseek.video.quotas import overview_clip


def numbers_at(path: str, *seconds: float) -> list[int]:
    times = seconds if len(seconds) % 2 == 0 else (*seconds, seconds[-1])
    frames = decode_clip(Clip(path, 0.0, 1.0, times, 56, 112, 1.0))
    return [read_number(frame.numpy()) for frame in frames[: len(seconds)]]


def error_of(path: str | Path) -> VideoError:
    with pytest.raises(VideoError) as caught:
        probe(str(path))
    assert caught.value.message.endswith(".")
    return caught.value


def test_number_minus_first_number_over_rate_is_the_time(tmp_path) -> None:
    folder = write_folder(tmp_path / "f", [8, 9, 10, 11, 20, 100])
    path = f"{folder}#fps=2"
    info = probe(path)
    assert (info.path, info.num_frames, info.duration_seconds) == (path, 6, 93 / 2)
    assert (info.height, info.width, info.average_fps) == (64, 112, pytest.approx(6 / 46.5))
    assert load_index(path).seconds(slice(None)).tolist() == [0.0, 0.5, 1.0, 1.5, 6.0, 46.0]
    assert numbers_at(path, 0.0, 0.99, 1.0, 5.9, 6.0, 45.9, 46.4) == [8, 9, 10, 11, 20, 20, 100]


def test_default_rate_is_four(tmp_path) -> None:
    folder = write_folder(tmp_path / "f", range(9))
    assert probe(str(folder)).duration_seconds == 9 / 4
    assert numbers_at(str(folder), 1.0) == [4]


@pytest.mark.parametrize(("rate", "seconds"), [("29.97", 10 / 29.97), ("0.5", 20.0), ("1", 10.0)])
def test_rate_in_the_name_decides_the_duration(tmp_path, rate, seconds) -> None:
    assert probe(f"{write_folder(tmp_path / 'f', range(10))}#fps={rate}").duration_seconds == pytest.approx(seconds)


@pytest.mark.parametrize("rate", ["0", "0.0", "-4", "nan", "inf", "1e9", "4fps", "", "30/1001", "9" * 4000])
def test_odd_rates_are_refused(tmp_path, rate) -> None:
    error = error_of(f"{write_folder(tmp_path / 'f', range(2))}#fps={rate}")
    assert error.code == "not_video" and "above 0" in error.message


def test_mark_in_the_name_of_a_file_or_of_nothing_is_part_of_the_name(tmp_path) -> None:
    assert error_of(tmp_path / "nothing#fps=4").code == "missing_file"
    file = tmp_path / "file"
    file.write_bytes(b"no video")
    assert error_of(f"{file}#fps=4").code == "missing_file"
    folder = write_folder(tmp_path / "odd#fps=2", range(4))
    assert probe(str(folder)).duration_seconds == 1.0
    assert probe(f"{folder}#fps=2").duration_seconds == 2.0


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".png", ".webp", ".JPG"])
def test_image_formats(tmp_path, suffix) -> None:
    assert numbers_at(str(write_folder(tmp_path / "f", [1, 2], suffix)), 0.0, 0.25) == [1, 2]


def test_images_with_an_alpha_channel_or_in_grey_are_shown(tmp_path) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    Image.fromarray(numbered_image(1)).convert("RGBA").save(folder / "1.png")
    Image.fromarray(numbered_image(2)).convert("L").save(folder / "2.jpg")
    assert numbers_at(str(folder), 0.0, 0.25) == [1, 2]


def test_everything_else_in_the_folder_is_passed_over(tmp_path) -> None:
    folder = write_folder(tmp_path / "f", [3, 4])
    (folder / "5.txt").write_text("no image")
    (folder / "cover.jpg").write_bytes(b"no number")
    (folder / "6.jpg").mkdir()
    os.mkfifo(folder / "7.jpg")
    (folder / "8.jpg").symlink_to(folder / "nowhere.jpg")
    assert load_index(str(folder)).info.num_frames == 2


@pytest.mark.parametrize("names", [(), ("a.txt", "cover.jpg")])
def test_folder_without_numbered_images_has_no_frames(tmp_path, names) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    assert error_of(tmp_path).code == "no_frames"


def test_mixed_sizes_are_refused_by_name(tmp_path) -> None:
    folder = write_folder(tmp_path / "f", range(5))
    Image.fromarray(numbered_image(3, 32, 56)).save(folder / "frame_3.jpg")
    error = error_of(folder)
    assert error.code == "mixed_frames"
    assert all(said in error.message for said in ("frame_3.jpg", "56 x 32", "112 x 64", str(folder)))


def test_two_images_of_one_number_are_refused_by_name(tmp_path) -> None:
    folder = write_folder(tmp_path / "f", [1, 2])
    Image.fromarray(numbered_image(2)).save(folder / "other_002.png")
    error = error_of(folder)
    assert error.code == "mixed_frames" and "frame_2.jpg and other_002.png" in error.message


def test_links_stay_inside(tmp_path) -> None:
    outside = write_folder(tmp_path / "outside", [9])
    folder = write_folder(tmp_path / "f", [1])
    (folder / "frame_2.jpg").symlink_to("frame_1.jpg")
    assert numbers_at(str(folder), 0.0, 0.25) == [1, 1]
    (folder / "frame_3.jpg").symlink_to(outside / "frame_9.jpg")
    error = error_of(folder)
    assert error.code == "outside_folder" and "frame_3.jpg" in error.message
    (folder / "frame_3.jpg").unlink()
    (folder / "frame_3.jpg").symlink_to("../f2/frame_1.jpg")
    write_folder(tmp_path / "f2", [1])
    assert error_of(folder).code == "outside_folder", "a sibling whose name begins alike"


def test_folder_that_is_a_link_itself_is_followed(tmp_path) -> None:
    (tmp_path / "link").symlink_to(write_folder(tmp_path / "f", [1, 2]))
    assert numbers_at(str(tmp_path / "link"), 0.3) == [2]


def test_damaged_images_are_named(tmp_path) -> None:
    folder = write_folder(tmp_path / "f", [1, 2, 3])
    whole = (folder / "frame_2.jpg").read_bytes()
    (folder / "frame_2.jpg").write_bytes(whole[:-30])
    assert numbers_at(str(folder), 0.0, 0.5) == [1, 3]
    with pytest.raises(VideoError) as caught:
        numbers_at(str(folder), 0.25)
    assert caught.value.code == "decode_failed" and "frame_2.jpg" in caught.value.message
    (folder / "frame_4.jpg").write_bytes(b"nothing")
    error = error_of(folder)
    assert error.code == "decode_failed" and "frame_4.jpg" in error.message


def test_another_format_behind_the_suffix_is_not_opened(tmp_path) -> None:
    """Pillow hands PostScript to another program."""
    (tmp_path / "1.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    assert error_of(tmp_path).code == "decode_failed"


def test_image_that_changed_size_since_is_refused(tmp_path) -> None:
    folder = write_folder(tmp_path / "f", [1, 2])
    assert probe(str(folder)).num_frames == 2
    Image.fromarray(numbered_image(2, 32, 56)).save(folder / "frame_2.jpg")
    with pytest.raises(VideoError) as caught:
        numbers_at(str(folder), 0.25)
    assert caught.value.code == "mixed_frames"


def test_new_image_is_seen(tmp_path) -> None:
    folder = write_folder(tmp_path / "f", [1, 2])
    assert probe(str(folder)).num_frames == 2
    os.utime(folder, (1, 1))
    assert probe(str(folder)).num_frames == 2
    Image.fromarray(numbered_image(3)).save(folder / "frame_3.jpg")
    assert probe(str(folder)).num_frames == 3


@pytest.mark.parametrize("number", [10**7, 10**40])
def test_absurd_gap_is_refused(tmp_path, number) -> None:
    folder = write_folder(tmp_path / "f", [1])
    (folder / f"{number}.jpg").write_bytes((folder / "frame_1.jpg").read_bytes())
    assert error_of(folder).code == "too_large"


def test_overviews_and_crops_work_on_frame_folders(tmp_path) -> None:
    path = f"{write_folder(tmp_path / 'f', range(0, 160))}#fps=4"
    limits = VideoConfig(max_frames=16)
    clip = overview_clip(probe(path), limits)
    assert (clip.video, clip.frame_seconds[0], clip.frame_seconds[-1]) == (path, 0.0, 39.75)
    crop = VideoCrop(limits).run(path, Call(10.0, 14.0, "fine"))
    assert isinstance(crop, Clip)
    assert numbers_at(path, *crop.frame_seconds) == [round(4 * t) for t in crop.frame_seconds]

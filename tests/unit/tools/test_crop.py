"""What a model gets back from a call: a decoded clip, or one plain sentence that says what is allowed."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.video_samples import read_number, steady, write_video, x264

from videoseek.config import VideoConfig
from videoseek.tools.crop import VideoCrop
from videoseek.types import Call, Clip, Fault
from videoseek.video.decode import FRAME_CACHE, read_frames
from videoseek.video.quotas import crop_tokens

LIMITS = VideoConfig(0.5, 0.5, 8, 2, 4, 64, 2, 16, frame_policy="uniform")
CROP = VideoCrop(LIMITS)


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> str:
    """32 seconds at 4 frames a second."""
    return str(write_video(tmp_path_factory.mktemp("crop") / "secret_name.mp4", steady(128, 4), options=x264(16)))


def test_clip_holds_the_asked_seconds_and_is_in_memory(video) -> None:
    clip = CROP.run(video, Call(8.0, 12.0, "fine"))
    assert isinstance(clip, Clip) and clip in FRAME_CACHE
    assert [read_number(frame.numpy()) for frame in read_frames(clip)] == [32, 40]


@pytest.mark.parametrize(
    ("asked", "given_window"),
    [((-5.0, 4.0), (0.0, 4.0)), ((30.0, 99.0), (30.0, 32.0)), ((-1e300, 1e300), (0.0, 32.0))],
    ids=str,
)
def test_window_is_clamped_to_the_video(video, asked, given_window) -> None:
    clip = CROP.run(video, Call(*asked, "medium"))
    assert isinstance(clip, Clip)
    assert (clip.start_seconds, clip.end_seconds) == given_window


@pytest.mark.parametrize(
    ("call", "code", "said"),
    [
        (Call(40.0, 44.0, "fine"), "window_outside", "between 0 and 32.0 seconds"),
        (Call(32.0, 36.0, "fine"), "window_outside", "between 0 and 32.0 seconds"),
        (Call(-8.0, -4.0, "fine"), "window_outside", "between 0 and 32.0 seconds"),
        (Call(math.nan, 4.0, "fine"), "window_outside", "between 0 and 32.0 seconds"),
        (Call(0.0, math.inf, "fine"), "window_outside", "between 0 and 32.0 seconds"),
        (Call(12.0, 8.0, "fine"), "window_reversed", "[12, 8]"),
        (Call(8.0, 8.0, "fine"), "window_reversed", "[8, 8]"),
        (Call(8.0, 8.5, "fine"), "window_too_short", "at least 1 seconds between 0 and 32.0"),
        (Call(31.5, 40.0, "fine"), "window_too_short", "at least 1 seconds between 0 and 32.0"),
        (Call(8.0, 12.0, "finest"), "bad_strategy", "coarse, medium, fine"),
    ],
    ids=str,
)
def test_faults_state_what_is_allowed(video, call, code, said) -> None:
    fault = CROP.run(video, call)
    assert isinstance(fault, Fault) and fault.code == code
    assert said in fault.message and fault.message.endswith(".")
    assert "secret_name" not in fault.message and "Error" not in fault.message


def test_window_of_exactly_the_minimum_is_shown(video) -> None:
    assert isinstance(CROP.run(video, Call(0.1 + 0.2, 1.3, "fine")), Clip)


@given(st.floats(), st.floats(), st.text(max_size=8) | st.sampled_from(["coarse", "medium", "fine"]))
def test_no_call_raises(video, start, end, strategy) -> None:
    outcome = CROP.run(video, Call(start, end, strategy))
    if isinstance(outcome, Clip):
        assert 0 <= outcome.start_seconds < outcome.end_seconds <= 32.0
        assert outcome.num_tokens <= crop_tokens(strategy, LIMITS)
    else:
        assert len(outcome.message) < 200


def test_file_trouble_is_named_once_to_the_user(tmp_path, caplog) -> None:
    path = tmp_path / "gone.mp4"
    for _ in range(3):
        assert isinstance(CROP.run(str(path), Call(0.0, 4.0, "fine")), Fault)
    assert [str(path) in record.message for record in caplog.records] == [True]


def test_file_trouble_is_a_fault_without_its_path(tmp_path) -> None:
    broken = tmp_path / "secret_name.mp4"
    broken.write_bytes(b"nothing")
    for path, code in ((broken, "not_video"), (tmp_path / "secret_name_2.mp4", "missing_file")):
        fault = CROP.run(str(path), Call(0.0, 4.0, "fine"))
        assert isinstance(fault, Fault) and fault.code == code and "secret_name" not in fault.message


def test_undecodable_window_is_a_fault(tmp_path) -> None:
    path = write_video(tmp_path / "v.mp4", steady(128, 4), size=(240, 320), options=x264(16))
    data = bytearray(path.read_bytes())
    first, last = data.index(b"mdat"), data.index(b"moov") - 4
    middle = (first + last) // 2
    data[middle:last] = bytes(last - middle)
    path.write_bytes(data)
    fault = CROP.run(str(path), Call(24.0, 28.0, "fine"))
    assert isinstance(fault, Fault) and fault.code == "decode_failed"

"""The words of a prompt: the sentence about time, and the letters of options."""

from __future__ import annotations

from videoseek.trajectory.wording import lettered, time_sentence
from videoseek.types import Clip, Sample


def test_sentence_of_a_crop_tells_absolute_seconds() -> None:
    clip = Clip("v.mp4", 1234.0, 1250.56, tuple(1234 + 2.0 * i for i in range(8)), 28, 28, 8 / 16.56)
    assert time_sentence(clip) == (
        "This video is uniformly sampled at 0.48 fps, contains 8 frames from 1234.0 seconds to 1250.6 seconds."
    )


def test_options_have_the_letters_of_their_order() -> None:
    sample = Sample("s", "v.mp4", "Which?", "B", "clue_single_w_tool", options=("red", "blue", "red"))
    assert sample.lettered_options == [("A", "red"), ("B", "blue"), ("C", "red")]
    assert Sample("s", "v.mp4", "Which?", "red", "clue_single_w_tool").lettered_options == []


def test_lines_of_options_carry_each_letter_once() -> None:
    assert lettered(("red", "blue")) == lettered(("A. red", "B. blue")) == ["A. red", "B. blue"]
    assert lettered(("A) red", "B) blue")) == ["A) red", "B) blue"]
    assert lettered(("A. red", "blue")) == ["A. A. red", "B. blue"]

"""The sentence about time: absolute seconds of the source, the true rate, whole numbers of frames."""

from __future__ import annotations

from videoseek.types import Clip
from videoseek.video.timeline import time_sentence


def test_sentence_of_a_crop_tells_absolute_seconds() -> None:
    clip = Clip("v.mp4", 1234.0, 1250.56, tuple(1234 + 2.0 * i for i in range(8)), 28, 28, 8 / 16.56)
    assert time_sentence(clip) == (
        "This video is uniformly sampled at 0.48 fps, contains 8 frames from 1234.0 seconds to 1250.6 seconds."
    )

"""The form of a prompt that vLLM takes."""

from __future__ import annotations

from videoseek.serving.prompts import with_one_pad
from videoseek.types import Clip


def test_a_clip_is_one_pad_in_vllms_form() -> None:
    clips = [Clip("a.mp4", 0.0, 1.0, tuple(map(float, range(2 * n))), 28, 56, 2.0) for n in (1, 2)]
    assert [clip.num_tokens for clip in clips] == [2, 4]
    assert with_one_pad([1, 9, 9, 2, 9, 9, 9, 9, 3], clips, 9) == [1, 9, 2, 9, 3]

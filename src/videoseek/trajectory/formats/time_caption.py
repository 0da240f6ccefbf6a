"""Video-Thinker's format (2510.23473): reasoning that names windows and describes each, then an answer."""

from __future__ import annotations

import re
from collections.abc import Mapping

from videoseek.trajectory.formats.windows import WINDOW_FAULTS, plain_number
from videoseek.trajectory.grammar import CallFormat
from videoseek.types import Fault

_TAGS = re.compile(r"</?(?:time|caption)>")
_PAIR = ("<time>", "</time>", "<caption>", "</caption>")


class TimeCaptionFormat(CallFormat):
    name = "time_caption"
    call_tag = ""
    quota = "none: the format calls no tool"
    faults = WINDOW_FAULTS | {
        "no_action": "End the turn with <answer>..</answer>.",
        "bad_mark": "Follow each <time>START-END</time> with a <caption>..</caption> of what it shows.",
    }
    system = """Answer a question about a video. Between <think> and </think> collect evidence first: for each stretch \
that matters write its seconds as <time>START-END</time> and at once what it shows as <caption>..</caption>. Reason \
from these notes, then answer between <answer> and </answer>:
{answer_example}"""

    def mark_faults(self, think: str, extra: Mapping[str, str]) -> list[Fault]:
        tags = list(_TAGS.finditer(think))
        is_whole = len(tags) % 4 == 0 and all(tag.group() == _PAIR[i % 4] for i, tag in enumerate(tags))
        for opening, closing, caption in zip(tags[::4], tags[1::4], tags[2::4], strict=False):
            start, _, end = think[opening.end() : closing.start()].partition("-")
            times = plain_number(start), plain_number(end)
            follows = not think[closing.end() : caption.start()].strip()
            is_whole &= follows and times[0] is not None and times[1] is not None and times[0] < times[1]
        return [] if is_whole else [self.fault("bad_mark")]

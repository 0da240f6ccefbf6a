"""What a run would ask and cost at most, reckoned without asking: every item is taken to pass every stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from videoseek.synthesis.items import Item, Usage
from videoseek.synthesis.prompts import prompt
from videoseek.synthesis.settings import SynthesisSettings
from videoseek.synthesis.stages import STAGES, caption_windows
from videoseek.video.decode import probe
from videoseek.video.errors import VideoError
from videoseek.video.quotas import crop_clip, overview_clip

#: English text, roughly.
_CHARACTERS_PER_TOKEN = 4
#: Tokens of the instructions and of a question with its options, and of a typical reply of each stage.
_PROMPT_TOKENS = 450
_REPLY_TOKENS = {
    "caption": 400,
    "question": 600,
    "localise": 150,
    "verify": 150,
    "overview": 150,
    "trajectory": 300,
    "judge": 150,
}


@dataclass(slots=True)
class Estimate:
    """`questions` counts those given and those to be made; `unreadable` are the sentences about bad videos."""

    sources: int = 0
    questions: int = 0
    unreadable: list[str] = field(default_factory=list)
    stages: dict[str, Usage] = field(default_factory=lambda: dict.fromkeys(STAGES, Usage()))

    def add(self, stage: str, calls: int, media_tokens: int) -> None:
        """`media_tokens` of all these calls together, in merged tokens of 28 x 28 px."""
        prompt_tokens = media_tokens + calls * (_PROMPT_TOKENS + len(prompt("system")) // _CHARACTERS_PER_TOKEN)
        self.stages[stage] += Usage(calls, 0, prompt_tokens, calls * _REPLY_TOKENS[stage])


def estimate(items: Sequence[Item], settings: SynthesisSettings, on_item: Callable[[int, int], None]) -> Estimate:
    """Opens every video for its length and size, decodes none."""
    found = Estimate(sources=len(items))
    for number, item in enumerate(items, 1):
        try:
            _add_item(found, item, settings)
        except VideoError as error:
            found.unreadable.append(f"{item.id}: {error.message}")
        on_item(number, len(items))
    return found


def _add_item(found: Estimate, item: Item, settings: SynthesisSettings) -> None:
    """A question is taken to have one clue, whose crop has the medium quota and the length of a caption or less."""
    info = probe(item.video)
    limits = settings.video
    overview_tokens = overview_clip(info, limits).num_tokens
    windows = caption_windows(info.duration_seconds, settings.caption_seconds)
    crops = [crop_clip(info, *window, "medium", limits).num_tokens for window in windows]
    caption_tokens = len(windows) * _REPLY_TOKENS["caption"]
    number = 1 if item.question is not None else settings.questions_per_video
    if item.question is None:
        if not item.captions:
            found.add("caption", len(windows), sum(crops))
        found.add("question", 1, caption_tokens)
    found.questions += number
    found.add("localise", number, number * (overview_tokens + (0 if item.question is not None else caption_tokens)))
    found.add("verify", number, number * max(crops))
    if settings.check_overview:
        found.add("overview", number, number * overview_tokens)
    found.add("trajectory", number, 0)
    found.add("judge", number, number * max(crops))


def estimate_text(found: Estimate, settings: SynthesisSettings) -> str:
    """A table for people."""
    total = sum(found.stages.values(), Usage())
    rows = [["stage", "calls", "prompt tokens", "reply tokens", "price"]]
    for name, usage in [*found.stages.items(), ("all", total)]:
        price = usage.prompt_tokens * settings.prompt_price + usage.completion_tokens * settings.completion_price
        numbers = (f"{n:,}" for n in (usage.calls, usage.prompt_tokens, usage.completion_tokens))
        rows.append([name, *numbers, f"{price / 1e6:.2f}"])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    table = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
    head = f"{found.sources} videos or lines, {found.questions} questions if each video gives all it is asked for"
    bad = [f"cannot be read: {sentence}" for sentence in found.unreadable]
    note = "At most, since rejected items ask no further; endpoints count pictures each in their own way."
    return "\n".join([head, *bad, "", *table, "", note])

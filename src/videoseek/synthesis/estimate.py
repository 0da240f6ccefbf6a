"""Estimates the requests and the cost of a run before the first request, as if every item passed every stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from videoseek.synthesis.items import STAGES, Item, Usage
from videoseek.synthesis.prompts import prompt
from videoseek.synthesis.settings import SynthesisSettings
from videoseek.synthesis.stages import caption_windows
from videoseek.video.decode import probe
from videoseek.video.errors import VideoError
from videoseek.video.quotas import crop_clip, overview_clip

#: Roughly, for English text.
_CHARACTERS_PER_TOKEN = 4
#: Tokens of a stage's instructions and of a question with its options.
_PROMPT_TOKENS = 450
#: Tokens of a typical reply of each stage.
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
    """`num_questions` counts given and generated questions. `unreadable` holds a sentence per bad video."""

    num_sources: int = 0
    num_questions: int = 0
    unreadable: list[str] = field(default_factory=list)
    stages: dict[str, Usage] = field(default_factory=lambda: dict.fromkeys(STAGES, Usage()))

    def add(self, stage: str, calls: int, media_tokens: int) -> None:
        """Adds `calls` requests with `media_tokens` in all, in merged tokens of 28 x 28 px."""
        prompt_tokens = media_tokens + calls * (_PROMPT_TOKENS + len(prompt("system")) // _CHARACTERS_PER_TOKEN)
        self.stages[stage] += Usage(calls, 0, prompt_tokens, calls * _REPLY_TOKENS[stage])


def estimate(items: Sequence[Item], settings: SynthesisSettings, on_item: Callable[[int, int], None]) -> Estimate:
    """Opens every video for length and size, without decoding.

    After each item, calls `on_item` with the number of finished items and the number of all items.
    """
    result = Estimate(num_sources=len(items))
    for number, item in enumerate(items, 1):
        try:
            _add_item(result, item, settings)
        except VideoError as error:
            result.unreadable.append(f"{item.id}: {error.message}")
        on_item(number, len(items))
    return result


def _add_item(result: Estimate, item: Item, settings: SynthesisSettings) -> None:
    """Assumes a clue per question, with a crop of the medium quota and the length of a caption window."""
    info = probe(item.video)
    limits = settings.video
    overview_tokens = overview_clip(info, limits).num_tokens
    windows = caption_windows(info.duration_seconds, settings.caption_seconds)
    crop_tokens = [crop_clip(info, *window, "medium", limits).num_tokens for window in windows]
    caption_tokens = len(windows) * _REPLY_TOKENS["caption"]
    number = 1
    localise_tokens = overview_tokens
    if item.question is None:
        number = settings.questions_per_video
        localise_tokens += caption_tokens
        if not item.captions:
            result.add("caption", len(windows), sum(crop_tokens))
        result.add("question", 1, caption_tokens)
    result.num_questions += number
    result.add("localise", number, number * localise_tokens)
    result.add("verify", number, number * max(crop_tokens))
    if settings.check_overview:
        result.add("overview", number, number * overview_tokens)
    result.add("trajectory", number, 0)
    result.add("judge", number, number * max(crop_tokens))


def estimate_text(result: Estimate, settings: SynthesisSettings) -> str:
    """Returns the estimate as a table for the terminal."""
    total = sum(result.stages.values(), Usage())
    rows = [["stage", "calls", "prompt tokens", "reply tokens", "price"]]
    for name, usage in [*result.stages.items(), ("all", total)]:
        counts = (f"{n:,}" for n in (usage.calls, usage.prompt_tokens, usage.completion_tokens))
        rows.append([name, *counts, f"{settings.cost(usage):.2f}"])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    table = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
    head = f"{result.num_sources} videos or lines, {result.num_questions} questions "
    head += "if each video gives all it is asked for"
    unreadable = [f"cannot be read: {sentence}" for sentence in result.unreadable]
    note = "At most, since rejected items ask no further; endpoints count pictures each in their own way."
    return "\n".join([head, *unreadable, "", *table, "", note])

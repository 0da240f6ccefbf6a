"""Rules of a reply beyond the schema, and the windows and quotas of the reply's clues: pure functions.

Each `*_fault` function returns a sentence on the first fault, or None. Repair requests show the sentences to the model,
so a change of a sentence changes the digests of cached repairs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from videoseek.config import VideoConfig
from videoseek.rewards.accuracy import tolerant_match
from videoseek.synthesis.items import DETAILS, Clue, Question
from videoseek.trajectory.grammar import seconds_number
from videoseek.types import STRATEGIES, Interval, letter_options
from videoseek.video.patches import FRAMES_PER_GRID
from videoseek.video.quotas import crop_tokens

#: The most seconds of a window beyond the limits, since models round times.
ROUNDING_SECONDS = 1.0
#: Detail of the evidence -> merged tokens (28 x 28 px) of a frame pair that shows the detail.
#: large: a scene or an action that fills the picture, at 224 x 224 px. medium: an object or a gesture, at about
#: 300 x 300 px. small: writing, counts and distant things, from about 450 x 450 px. With Video-o3's quotas at 2 fps,
#: medium evidence gives 2 s coarse, 28 s medium and 35 s fine, as in the worked example of that paper.
TOKENS_PER_GRID = dict(zip(DETAILS, (64, 128, 256), strict=True))

_TIME = re.compile(r"\d{1,2}:\d{2}|\b\d+(\.\d+)?\s*(s|secs?|seconds?|mins?|minutes?)\b", re.IGNORECASE)
_META = re.compile(
    r"\b(given|provided|supplied|annotated|reference|known|ground.truth)\s+(clues?|windows?|answers?|captions?|findings?|cues?)\b"
    r"|\b(correct|right) answer (is (known|given|provided)|given|provided)\b|\bground.truth\b|\binstructions?\b",
    re.IGNORECASE,
)
_WORD = re.compile(r"[^\W_]{4,}")
#: Least share, and least number, of the finding's own words in a think that leaks the finding.
_LEAK_SHARE, _MIN_LEAKED_WORDS = 0.5, 2


def window_numbers(window: Interval) -> list[int | float]:
    """Returns the window as a call writes it: whole seconds without a decimal point."""
    return [seconds_number(seconds) for seconds in window]


def window_fault(start: float, end: float, first_seconds: float, last_seconds: float) -> str | None:
    if not start < end:
        return f"the window [{start:g}, {end:g}] must start before it ends."
    if start < first_seconds - ROUNDING_SECONDS or end > last_seconds + ROUNDING_SECONDS:
        return f"the window [{start:g}, {end:g}] must lie within {first_seconds:g} and {last_seconds:g} seconds."
    return None


def captions_fault(reply: dict[str, Any], first_seconds: float, last_seconds: float) -> str | None:
    for caption in reply["captions"]:
        if not caption["text"].strip():
            return "a caption has no text."
        if fault := window_fault(caption["start"], caption["end"], first_seconds, last_seconds):
            return fault
    return None


def clues_fault(reply: dict[str, Any], duration_seconds: float) -> str | None:
    if not reply["clues"]:
        return "there is no clue; name at least one window."
    for clue in reply["clues"]:
        if not (clue["cue"].strip() and clue["finding"].strip()):
            return "a clue needs both a cue and a finding."
        if fault := window_fault(clue["start"], clue["end"], 0.0, duration_seconds):
            return fault
    return None


def question_fault(question: dict[str, Any], num_wrong: int, last_seconds: float) -> tuple[str, str] | None:
    """Returns the code and the sentence of a fault that disqualifies a generated question, or None."""
    options = [question["correct"], *question["wrong"]]
    if len(question["wrong"]) != num_wrong:
        return "wrong_options", f"it has {len(question['wrong'])} wrong options instead of {num_wrong}."
    if not all(option.strip() for option in options) or not question["question"].strip():
        return "empty_text", "the question or an option is empty."
    if len({" ".join(option.casefold().split()) for option in options}) < len(options):
        return "equal_options", "two options are the same."
    if match := _TIME.search(question["question"]):
        return "time_in_question", f"the question gives a time away: {match.group()!r}."
    if not question["evidence"]:
        return "no_evidence", "it names no evidence."
    for window in question["evidence"]:
        if len(window) != 2:
            return "evidence_window", f"an evidence window must be [start, end], got {window}."
        if fault := window_fault(window[0], window[1], 0.0, last_seconds):
            return "evidence_window", fault
    return None


def verdict_fault(reply: dict[str, Any], question: Question) -> str | None:
    """Checks the form of an answer from clips."""
    letters = [letter for letter, _ in letter_options(question.options)]
    if letters and not any(tolerant_match(reply["answer"], letter) for letter in letters):
        return f"the answer must be one of the letters {', '.join(letters)}, got {reply['answer']!r}."
    return None if reply["answer"].strip() else "the answer is empty."


def trajectory_fault(reply: dict[str, Any], question: Question, clues: Sequence[Clue]) -> str | None:
    """Checks that steps copy the windows and the answer exactly, and that thinks leak no later finding.

    `clues` are the windows to look at; the sequence is empty if the overview suffices.
    """
    steps, final = reply["steps"], reply["final"]
    if len(steps) != len(clues):
        return f"there must be {len(clues)} steps, one for each window, got {len(steps)}."
    for number, (step, clue) in enumerate(zip(steps, clues, strict=True), 1):
        if step["window"] != list(clue.window):
            return f"the window of step {number} must be copied as {window_numbers(clue.window)}, got {step['window']}."
    if not tolerant_match(final["answer"], question.answer):
        return f"the final answer must stay {question.answer!r}, got {final['answer']!r}."
    thinks = [step["think"] for step in steps] + [final["think"]]
    for number, think in enumerate(thinks, 1):
        if not think.strip():
            return f"think {number} is empty."
        if "<" in think or ">" in think:
            return f"think {number} holds an angle bracket."
        if match := _META.search(think):
            return f"think {number} says {match.group()!r}, of which the viewer knows nothing."
    return _leak_fault([step["think"] for step in steps], question, clues)


def _leak_fault(thinks: Sequence[str], question: Question, clues: Sequence[Clue]) -> str | None:
    """Checks that the think before each look leaks no finding of the same look or of a later look."""
    context_words = _words(" ".join([question.text, *question.options, *(clue.cue for clue in clues)]))
    for number, think in enumerate(thinks):
        for later, clue in enumerate(clues[number:], number + 1):
            leaked = leaked_words(think, clue.finding, context_words)
            if leaked:
                return (
                    f"the think of step {number + 1} tells what only the look of step {later} shows: "
                    f"{', '.join(sorted(leaked))}."
                )
        context_words |= _words(clues[number].finding)
    return None


def leaked_words(think: str, finding: str, context_words: set[str]) -> set[str]:
    """Returns the words of the finding that the think leaks, or the empty set for fewer words than a leak has.

    Only words of four letters or more outside `context_words` count. A leak has at least two of the finding's words,
    and at least half of the finding's words.
    """
    own_words = _words(finding) - context_words
    leaked = own_words & _words(think)
    return leaked if len(leaked) >= max(_MIN_LEAKED_WORDS, _LEAK_SHARE * len(own_words)) else set()


def judge_fault(reply: dict[str, Any]) -> str | None:
    if reply["is_valid"] == bool(reply["faults"]):
        return f"is_valid is {reply['is_valid']}, but faults is {reply['faults']}; it is true exactly without faults."
    return None if reply["analysis"].strip() else "the analysis is empty."


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.casefold()))


def sampling_strategy(length_seconds: float, detail: str, limits: VideoConfig) -> str:
    """Returns the cheapest quota that shows a window of the length finely enough, else the largest quota.

    All frame pairs of a crop share the quota, so a longer window needs a larger quota for the same detail. A quota
    above the need would teach a policy to waste context.
    """
    frames = min(max(length_seconds * limits.crop_fps, limits.min_frames), limits.max_frames)
    num_grids = max(frames / FRAMES_PER_GRID, 1.0)
    tokens_per_grid = min(TOKENS_PER_GRID[detail], limits.max_tokens_per_grid)
    sufficient = (strategy for strategy in STRATEGIES if crop_tokens(strategy, limits) / num_grids >= tokens_per_grid)
    return next(sufficient, STRATEGIES[-1])


def whole_seconds(start_seconds: float, end_seconds: float, duration_seconds: float, min_seconds: float) -> Interval:
    """Rounds the window outwards to whole seconds, at least `min_seconds` long and inside the video.

    A model's times are as coarse as the frames in the request, and a policy can learn to write whole seconds. The end
    of the video keeps a tenth of a second, the precision of a written call.
    """
    last = math.floor(duration_seconds * 10) / 10
    start, end = max(math.floor(start_seconds), 0), min(math.ceil(end_seconds), last)
    if end - start < min_seconds:
        end = min(start + math.ceil(min_seconds), last)
        start = max(min(start, math.floor(end - min_seconds)), 0)
    return float(start), float(end)


def merge_clues(
    clues: Sequence[Clue], duration_seconds: float, merge_gap_seconds: float, limits: VideoConfig
) -> tuple[Clue, ...]:
    """Sorts the clues by time, rounds to whole seconds, merges near clues and sets the quota of each crop."""
    windows = [whole_seconds(*clue.window, duration_seconds, max(limits.min_window_seconds, 1.0)) for clue in clues]
    rounded = [
        replace(clue, start_seconds=start, end_seconds=end) for clue, (start, end) in zip(clues, windows, strict=True)
    ]
    merged: list[Clue] = []
    for clue in sorted(rounded, key=lambda clue: clue.window):
        if merged and clue.start_seconds - merged[-1].end_seconds <= merge_gap_seconds:
            merged[-1] = _merge(merged[-1], clue)
        else:
            merged.append(clue)
    return tuple(
        replace(clue, strategy=sampling_strategy(clue.end_seconds - clue.start_seconds, clue.detail, limits))
        for clue in merged
    )


def _merge(first: Clue, second: Clue) -> Clue:
    return replace(
        first,
        end_seconds=max(first.end_seconds, second.end_seconds),
        cue=f"{first.cue} {second.cue}",
        finding=f"{first.finding} {second.finding}",
        detail=max(first.detail, second.detail, key=DETAILS.index),
    )


def covered_share(clues: Sequence[Clue], duration_seconds: float) -> float:
    """Returns the share of the video under the clues. The clues must be disjoint."""
    return sum(clue.end_seconds - clue.start_seconds for clue in clues) / duration_seconds

"""Finds the kind of a sample: the source names the kind, or a rule derives the kind from the record."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from videoseek.trajectory.grammar import read_object, read_segment
from videoseek.types import KINDS, Interval, ParsedTurn

#: Names of reward functions in the field `data_source` of Video-o3's records.
_REWARD_NAMES = {
    "tool_reward_with_round_penalty": "clue_single_w_tool",
    "tool_reward_without_round_penalty": "clue_multi_w_tool",
    "tool_penalty_single_turn": "clue_single_wo_tool",
    "tool_free_form": "clue_multi_wo_tool",
}
_QUADRANT = re.compile(r"(single|multi)_(w|wo)_tool")
_NEED = re.compile(r"_(w|wo)_tool")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


def kind_from_name(name: str, num_clues: int) -> str | None:
    """Returns the kind from the name of a source or file, as in Seeker-173K, or None."""
    if name in KINDS:
        return name
    if name in _REWARD_NAMES:
        return _REWARD_NAMES[name]
    if quadrant := _QUADRANT.search(name):
        return f"clue_{quadrant[1]}_{quadrant[2]}_tool"
    if need := _NEED.search(name):
        return f"clue_{'multi' if num_clues > 1 else 'single'}_{need[1]}_tool"
    if "freeform" in name or "free_form" in name:
        return "clue_multi_wo_tool"
    return "temporal_grounding" if "grounding" in name else None


def kind_from_evidence(answer: str, clues: Sequence[Interval], turns: Sequence[ParsedTurn]) -> str:
    """Returns the kind of a record from the evidence, for a source that names no kind.

    A window as the answer means temporal_grounding. Otherwise recorded turns need the tool if a turn calls the tool,
    and a record of clues alone needs the tool. Single or multi follows the number of clues or, without clues, the
    number of different calls. A record of a question alone is clue_multi_wo_tool, because the reward of the kind
    ignores calls.
    """
    if answer_window(answer) is not None:
        return "temporal_grounding"
    calls = {(call.start_seconds, call.end_seconds) for turn in turns for call in turn.crops}
    if not turns and not clues:
        return "clue_multi_wo_tool"
    number = "multi" if (len(clues) or len(calls)) > 1 else "single"
    return f"clue_{number}_{'w' if calls or not turns else 'wo'}_tool"


def answer_window(answer: str) -> Interval | None:
    """Returns the window, in seconds, of an answer in the project's form, or None for any other answer."""
    payload = read_object(answer)
    segment = read_segment(payload.get("temporal_segment")) if payload is not None else None
    return segment if isinstance(segment, tuple) else None


def window_answer(start_seconds: float, end_seconds: float) -> str:
    """Writes a window as the answer to a temporal_grounding question."""
    return json.dumps({"temporal_segment": [start_seconds, end_seconds]})


def loose_window_answer(text: str) -> str | None:
    """Rewrites a window like `[3, 7.5]` or `3 to 7.5` in the project's form; None unless the text has two numbers."""
    numbers = _NUMBER.findall(text)
    return window_answer(float(numbers[0]), float(numbers[1])) if len(numbers) == 2 else None

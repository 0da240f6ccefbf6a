"""Format scores in [0, 1]: the public code's score from its own patterns, and ours from the grammar's faults."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any

from videoseek.trajectory.grammar import STRUCTURE_FAULTS
from videoseek.types import STRATEGIES, Interval, ParsedTurn

# The public code's patterns end in an optional newline and `$`: a second newline passes.
_CALL_BLOCK = re.compile(r"<grounding>(.*?)</grounding>", re.DOTALL)
_CALL_TURN = re.compile(r"\n?<think>.*?</think>\n?<grounding>(.*?)</grounding>\n?\n?", re.DOTALL)
_ANSWER_TURN = re.compile(r"\n?<think>.*?</think>\n?<answer>.*?</answer>\n?\n?", re.DOTALL)


def _load(text: str) -> Any:
    """Returns JSON as parsed by the public code, or None. Its crashes (nesting, size) count as undecodable."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _public_content_errors(content: str) -> int:
    payload = _load(content)
    if isinstance(payload, (list, str)):
        return 2  # a field is missing
    if not isinstance(payload, dict):
        return 1
    errors = 0 if payload.get("sampling_strategy") in STRATEGIES else 1
    segment = payload.get("temporal_segment")
    return errors + (not isinstance(segment, list) or len(segment) != 2)


def public_format(turns: Sequence[str]) -> tuple[float, int]:
    """Returns format score and number of calls. A misplaced turn voids both; an error in a call costs 1 / turns."""
    matches = [_CALL_TURN.fullmatch(turn) for turn in turns[:-1]]
    if not turns or not all(matches) or not _ANSWER_TURN.fullmatch(turns[-1]):
        return 0.0, 0
    errors = sum(_public_content_errors(match.group(1)) for match in matches if match)
    return max(0.0, 1.0 - errors * (1.0 / len(turns))), len(matches)


def public_windows(turns: Sequence[str]) -> list[Interval]:
    """Returns every window of every JSON call block, executed or not. Reverses reversed windows."""
    windows: list[Interval] = []
    for content in (content for turn in turns for content in _CALL_BLOCK.findall(turn)):
        payload = _load(content)
        segment = payload.get("temporal_segment") if isinstance(payload, dict) else None
        if not isinstance(segment, list) or len(segment) != 2:
            continue
        try:
            start, end = sorted((float(segment[0]), float(segment[1])))
        except (TypeError, ValueError, OverflowError):
            continue
        if math.isfinite(start) and math.isfinite(end):
            windows.append((start, end))
    return windows


def strict_format(turns: Sequence[ParsedTurn]) -> float:
    """Returns 1 if every turn but the last calls, and the last answers, all without fault.

    A broken structure in any turn gives 0 (as do an empty reasoning and a second answer). A fault inside a call at the
    right place costs 1 / turns.
    """
    if not turns or turns[-1].answer is None:
        return 0.0
    codes = [{item.code for item in turn.faults} for turn in turns]
    if any(turn_codes & STRUCTURE_FAULTS for turn_codes in codes):
        return 0.0
    if any(turn.answer is not None for turn in turns[:-1]):
        return 0.0
    if not all((turn.think or "").strip() for turn in turns):
        return 0.0
    return 1.0 - sum(bool(turn_codes) for turn_codes in codes) / len(turns)

"""`python -m videoseek.score FILE.jsonl [variant=strict|paper|public_code] [decay=0.05]`: scores recorded trajectories.

Reads one JSON object per line, `{"kind", "answer", "clues": [[start, end], ..], "turns": [text, ..]}`: times are in
seconds, turns are the assistant's texts. The optional `executed` holds one flag per well-formed call: true for a call
with a returned clip. Prints one JSON object per line with the parts of the reward (see docs/reward.md). The command
checks every line before printing the first result, and skips blank lines.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from videoseek.command import parse_files, run_command
from videoseek.config import UsageError, option
from videoseek.rewards.trajectory_guided import VARIANTS, RewardParts, Trajectory, score
from videoseek.types import Interval

USAGE = "python -m videoseek.score FILE.jsonl [variant=strict|paper|public_code] [decay=0.05]"


@dataclass(frozen=True)
class ScoreSettings:
    variant: str = option("strict", "form of the reward", choices=VARIANTS)
    decay: float = option(0.05, "bonus lost per call beyond the clues", at_least=0, at_most=1)


def _is_seconds(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _clues(value: object) -> list[Interval]:
    if not isinstance(value, list):
        raise ValueError("clues must be a list of [start, end] in seconds")
    for clue in value:
        if not isinstance(clue, list) or len(clue) != 2 or not all(map(_is_seconds, clue)):
            raise ValueError(f"clue {str(clue)[:80]} must be [start, end] in seconds")
        if not 0 <= clue[0] < clue[1]:
            raise ValueError(f"clue {clue} must satisfy 0 <= start < end")
    return [(float(start), float(end)) for start, end in value]


def _list_of(name: str, value: object, kind: type) -> list[Any]:
    if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
        raise ValueError(f"{name} must be a list of {'texts' if kind is str else 'true or false'}")
    return value


def score_line(line: str, variant: str, decay: float) -> RewardParts:
    """Scores one line of a file. Raises ValueError with one sentence for a malformed trajectory."""
    try:
        record = json.loads(line)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    if missing := [name for name in ("kind", "answer", "clues", "turns") if name not in record]:
        raise ValueError(f"field {missing[0]!r} is missing")
    kind, answer = record["kind"], record["answer"]
    if not isinstance(kind, str) or not isinstance(answer, str):
        raise ValueError("kind and answer must be texts")
    turns, clues = _list_of("turns", record["turns"], str), _clues(record["clues"])
    executed = record.get("executed")
    if executed is not None:
        executed = _list_of("executed", executed, bool)
    return score(Trajectory(kind, answer, clues, turns, executed), variant, decay)


def main(arguments: list[str]) -> None:
    files, settings = parse_files(arguments, ScoreSettings(), USAGE)
    if len(files) != 1:
        raise UsageError(f"one file is wanted, got {len(files)}; usage: {USAGE}")
    path = Path(files[0])
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise UsageError(f"{path} cannot be read: {reason}") from None
    parts = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            parts.append(score_line(line, settings.variant, settings.decay))
        except ValueError as error:
            raise UsageError(f"{path}, line {number}: {error}") from None
    sys.stdout.writelines(json.dumps(asdict(part)) + "\n" for part in parts)


if __name__ == "__main__":
    raise SystemExit(run_command(main))

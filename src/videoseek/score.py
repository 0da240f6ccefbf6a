"""`python -m videoseek.score FILE.jsonl [variant=strict|paper|public_code] [key=value ...]`: scores trajectories.

Reads one JSON object per line, in any of three forms: a run's own trajectory (trajectories/*.jsonl), a sample with
recorded turns, or `{"kind", "answer", "clues": [[start, end], ..], "turns": [text, ..]}`: times are in seconds, turns
are the assistant's texts, clues may be missing. There, the optional `executed` holds one flag per well-formed call:
true for a call with a returned clip.

Prints one JSON object per line with the parts of the reward (see docs/reward.md) and the values of your `functions`,
and the means on stderr. The command checks every line before printing the first result. It passes over blank lines and
over lines of kind `perception`, which have no reward.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from videoseek.command import parse_files, run_command
from videoseek.config import FORMAT_NAMES, UsageError, option
from videoseek.rewards.functions import load_reward_functions
from videoseek.rewards.trajectory_guided import VARIANTS, RewardParts, Trajectory, episode_reward, score
from videoseek.trajectory.formats import load_format
from videoseek.trajectory.grammar import CallFormat
from videoseek.trajectory_record import TrajectoryRecord
from videoseek.types import Episode, Interval, Sample, StopReason, Turn
from videoseek.user_code import tool_names

USAGE = "python -m videoseek.score FILE.jsonl [variant=strict|paper|public_code] [key=value ...]"


@dataclass(frozen=True)
class ScoreSettings:
    variant: str = option("strict", "form of the reward", choices=VARIANTS)
    decay: float = option(0.05, "bonus lost per call beyond the clues", at_least=0, at_most=1)
    format: str | None = option(
        None,
        "how a call is written (null: as in the config.yaml of the run, else grounding)",
        choices_or_file=FORMAT_NAMES,
    )
    functions: list[str] = option([], "reward functions of your own, as FILE.py:FUNCTION, beside the rule's parts")


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


@dataclass(frozen=True, slots=True)
class Line:
    """A scored line: the rule's parts, and the episode for the user's functions."""

    parts: RewardParts
    episode: Episode


def read_line(line: str, settings: ScoreSettings, call_format: CallFormat) -> Line | None:
    """Scores one line of a file, or returns None for kind `perception`. Raises ValueError with one sentence."""
    try:
        record = json.loads(line)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    if record.get("kind") == "perception":
        return None
    if "token_ids" in record:
        try:
            episode = recorded_episode(TrajectoryRecord.from_json(record))
        except (LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"not a recorded episode: {type(error).__name__} {error}") from None
        return Line(episode_reward(episode, settings.variant, settings.decay, call_format), episode)
    if missing := [name for name in ("kind", "answer", "turns") if name not in record]:
        raise ValueError(f"field {missing[0]!r} is missing")
    kind, answer = record["kind"], record["answer"]
    if not isinstance(kind, str) or not isinstance(answer, str):
        raise ValueError("kind and answer must be texts")
    turns, clues = _list_of("turns", record["turns"], str), _clues(record.get("clues", []))
    executed = record.get("executed")
    if executed is not None:
        executed = _list_of("executed", executed, bool)
    trajectory = Trajectory(kind, answer, clues, turns, executed)
    parts = score(trajectory, settings.variant, settings.decay, call_format)
    options = _list_of("options", record.get("options", []), str)
    id_, video, question = (str(record.get(name, "")) for name in ("id", "video", "question"))
    sample = Sample(id_, video, question, answer, kind, tuple(options), tuple(clues))
    texts = [Turn("assistant", text, index, index + 1) for index, text in enumerate(turns)]
    episode = Episode(sample, [], [], [], [], [], [], texts, [], StopReason.REFERENCE, prompt_length=0)
    return Line(parts, episode)


def recorded_episode(record: TrajectoryRecord) -> Episode:
    """Returns the episode of a record, with its tokens but without their roles and log-probabilities."""
    sizes = [turn.num_tokens for turn in record.turns]
    # The header of the next assistant turn follows each user turn, always with the same tokens.
    num_headers = sum(turn.role == "user" for turn in record.turns)
    header = (len(record.token_ids) - sum(sizes)) // max(num_headers, 1)
    turns: list[Turn] = []
    start = prompt_length = 0
    for turn in record.turns:
        turns.append(Turn(turn.role, turn.text, start, start + turn.num_tokens))
        start += turn.num_tokens + (header if turn.role == "user" else 0)
        if turn.role == "user" and prompt_length == 0:
            prompt_length = start
    blank = [0] * len(record.token_ids)
    false, zero = [False] * len(blank), [0.0] * len(blank)
    clips, calls, reason = list(record.clips), list(record.calls), StopReason(record.stop_reason)
    ids = list(record.token_ids)
    return Episode(record.sample, ids, blank, blank, false, zero, clips, turns, calls, reason, prompt_length)


def _format_of(path: Path, settings: ScoreSettings) -> CallFormat:
    """Returns the format: the setting, or the one of the run that the file belongs to, with the tools of that run."""
    config = path.parent.parent / "config.yaml"
    known: dict[str, Any] = {}
    if path.parent.name == "trajectories" and config.is_file():
        known = yaml.safe_load(config.read_text(encoding="utf-8"))
    name = settings.format or str(known.get("prompt", {}).get("format", "grounding"))
    specs = [] if settings.format else known.get("tools", [])
    return load_format(name, tools=tool_names(specs))


def main(arguments: list[str]) -> None:
    files, settings = parse_files(arguments, ScoreSettings(), USAGE)
    if len(files) != 1:
        raise UsageError(f"one file is wanted, got {len(files)}; usage: {USAGE}")
    path = Path(files[0])
    functions = load_reward_functions(settings.functions)
    try:
        texts = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise UsageError(f"{path} cannot be read: {reason}") from None
    call_format = _format_of(path, settings)
    lines = []
    for number, text in enumerate(texts, start=1):
        if not text.strip():
            continue
        try:
            line = read_line(text, settings, call_format)
        except ValueError as error:
            raise UsageError(f"{path}, line {number}: {error}") from None
        lines += [line] if line else []
    rows: list[dict[str, float | None]] = [asdict(line.parts) for line in lines]
    for function in functions:
        for row, value in zip(rows, function([line.episode for line in lines]), strict=True):
            row[function.name] = value
    sys.stdout.writelines(json.dumps(row) + "\n" for row in rows)
    known = {name: [value for row in rows if (value := row[name]) is not None] for name in (rows[0] if rows else ())}
    means = [f"{name} {sum(values) / len(values):.3f}" for name, values in known.items() if values]
    print(f"videoseek: means of {len(rows)} trajectories: {', '.join(means)}", file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(run_command(main))

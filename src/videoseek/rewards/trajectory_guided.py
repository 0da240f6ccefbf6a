"""The trajectory-guided reward of Video-o3 (arXiv 2601.23224): R = accuracy * (1 + bonus) + format, in [0, 3].

bonus = (0.5 * search + 0.5 * S) * decay. S is the clue score, search is 1 for an episode with a call, and decay falls
by a constant with each surplus call. The unweighted accuracy and format decide the bonus. docs/reward.md has the
formulas and a table of computed episodes. The variants:

- `paper`: the formula as printed. A right answer earns the bonus in any format.
- `public_code`: the rule of the authors' released code, commit c7e09a3. The bonus also needs a perfect format. 10,000
  random trajectories gave equal numbers except in the following cases: the decay stops at 0 (there, the bonus turns
  negative after 20 surplus calls); an episode without turns scores 0 (there, its prompt is dropped); a grounding answer
  with a start below 0, NaN or Infinity has IoU 0 (there, its IoU, NaN, or full format); S excludes a window with
  Infinity; a call as JSON list or text with both field names counts as two errors (there, as one).
- `strict`: as `public_code`, but only a look at a clue pays. search is the fit of the best executed window to its clue,
  and S is the mean fit over clues (`clue_score.clue_fit`). A crop of the whole film earns 0 unless the clue fills more
  than a fifth of the film; a grazing window, a repeated call and a failed call earn 0. Surplus calls, including failed
  calls, lower the decay also on the multi kinds. An answer may name its option in any usual spelling.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from videoseek.rewards.accuracy import last_answer, public_match, tolerant_match
from videoseek.rewards.clue_score import MIN_WINDOW_SECONDS, clue_fits, clue_score, overlap
from videoseek.rewards.format import public_format, public_windows, strict_format
from videoseek.trajectory.formats import FORMATS
from videoseek.trajectory.grammar import STRUCTURE_FAULTS, CallFormat, read_object, read_segment
from videoseek.types import KINDS, Call, CallRecord, Episode, Fault, Interval, ParsedTurn

VARIANTS = ("strict", "paper", "public_code")
SCORED_KINDS = tuple(kind for kind in KINDS if kind != "perception")
#: The parts written into `Episode.rewards`; `reward` is the total.
REWARD_NAMES = ("reward", "accuracy", "format", "clue_score", "bonus")


@dataclass(frozen=True, slots=True)
class Trajectory:
    """The reward's input from an episode.

    answer is the key (an option letter or words; `temporal_grounding` ignores the key), clues are in seconds, turns are
    the assistant's texts without end-of-turn tokens. executed holds one flag per well-formed call, in order: True for a
    call with a clip (None: all calls). Only `strict` reads executed.
    """

    kind: str
    answer: str
    clues: Sequence[Interval]
    turns: Sequence[str]
    executed: Sequence[bool | Interval] | None = None


@dataclass(frozen=True, slots=True)
class RewardParts:
    """A reward and its parts. clue_score is the measured S, also if the bonus ignores S; calls counts failures.

    For `temporal_grounding`, accuracy is the IoU of the answered window, and the bonus is 0.
    """

    reward: float
    accuracy: float
    format: float
    clue_score: float
    decay: float
    bonus: float
    calls: int


@dataclass(frozen=True, slots=True)
class _BonusRule:
    """fixed_score replaces S. free_calls cause zero decay (None: as many as clues)."""

    needs_call: bool
    fixed_score: float | None
    free_calls: float | None


# Direct kinds earn a bonus without any call: the overview shows their evidence, and there are zero windows to judge.
_PUBLIC_RULES = {
    "clue_single_w_tool": _BonusRule(needs_call=True, fixed_score=None, free_calls=None),
    "clue_multi_w_tool": _BonusRule(needs_call=True, fixed_score=None, free_calls=math.inf),
    "clue_single_wo_tool": _BonusRule(needs_call=False, fixed_score=0.5, free_calls=0),
    "clue_multi_wo_tool": _BonusRule(needs_call=False, fixed_score=0.0, free_calls=math.inf),
}
_STRICT_RULES = _PUBLIC_RULES | {
    "clue_multi_w_tool": _BonusRule(needs_call=True, fixed_score=None, free_calls=None),
    "clue_multi_wo_tool": _BonusRule(needs_call=False, fixed_score=0.0, free_calls=0),
}


@dataclass(frozen=True, slots=True)
class _Evidence:
    """The evidence of a trajectory for the bonus, by variant. bonus_open: accuracy and format allow a bonus."""

    accuracy: float
    format: float
    search: float
    clue_score: float
    calls: int
    bonus_open: bool


def score(
    trajectory: Trajectory,
    variant: str = "strict",
    decay: float = 0.05,
    call_format: str | CallFormat = "grounding",
    min_window_seconds: float = MIN_WINDOW_SECONDS,
) -> RewardParts:
    """Scores one trajectory. decay is the bonus lost per surplus call; call_format names the grammar.

    min_window_seconds is the tool's shortest window, which `strict` takes as the length of a shorter clue.

    `paper` and `public_code` read the grounding format only. Raises ValueError for an unknown kind, variant or format,
    for kind `perception`, and for executed flags of another number than the calls.
    """
    fmt = _checked_format(trajectory.kind, variant, call_format)
    parsed = [fmt.parse(turn) for turn in trajectory.turns]
    attempts = sum(len(turn.crops) + sum(item.code not in STRUCTURE_FAULTS for item in turn.faults) for turn in parsed)
    windows = _executed_windows(parsed, trajectory.executed)
    if trajectory.kind == "temporal_grounding":
        return _temporal_grounding(trajectory, parsed, attempts, variant)
    if variant == "strict":
        fits = clue_fits(windows, trajectory.clues, min_window_seconds)
        evidence = _strict_evidence(trajectory, parsed, fits, attempts)
    else:
        evidence = _public_evidence(trajectory, variant)
    return _with_bonus(trajectory, evidence, variant, decay)


def episode_reward(
    episode: Episode,
    variant: str = "strict",
    decay: float = 0.05,
    call_format: str | CallFormat = "grounding",
    min_window_seconds: float = MIN_WINDOW_SECONDS,
) -> RewardParts:
    """Scores an episode by its texts and, in `strict`, by the calls with a clip (`Episode.calls`)."""
    sample, turns = episode.sample, episode.assistant_texts()
    fmt = _checked_format(sample.kind, variant, call_format)
    executed: list[bool | Interval] = []
    for index, turn in enumerate(turns):
        ran = [_ran(record) for record in episode.calls if record.turn == index and isinstance(record.call, Call)]
        num_calls = len(fmt.parse(turn).crops)
        executed += ran + [False] * (num_calls - len(ran))  # a call prevented by a limit left no record
    trajectory = Trajectory(sample.kind, sample.answer, sample.clues, turns, executed)
    return score(trajectory, variant, decay, fmt, min_window_seconds)


def _ran(record: CallRecord) -> bool | Interval:
    """Returns whether a call was executed, as the window in seconds for a call in parts of the video."""
    if record.clip is None or not isinstance(record.call, Call) or record.call.num_parts is None:
        return record.clip is not None
    return record.clip.start_seconds, record.clip.end_seconds


def write_rewards(
    episodes: Sequence[Episode],
    variant: str = "strict",
    decay: float = 0.05,
    call_format: str | CallFormat = "grounding",
    min_window_seconds: float = MIN_WINDOW_SECONDS,
) -> None:
    """Writes REWARD_NAMES into `rewards` of each episode."""
    for episode in episodes:
        parts = episode_reward(episode, variant, decay, call_format, min_window_seconds)
        episode.rewards = {name: float(getattr(parts, name)) for name in REWARD_NAMES}


def _checked_format(kind: str, variant: str, call_format: str | CallFormat) -> CallFormat:
    if kind == "perception":
        raise ValueError("kind 'perception' is training text without a verdict and cannot be scored")
    if kind not in SCORED_KINDS:
        raise ValueError(f"kind {kind!r} is not one of {', '.join(SCORED_KINDS)}")
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r} is not one of {', '.join(VARIANTS)}")
    if isinstance(call_format, str):
        if call_format not in FORMATS:
            raise ValueError(f"call format {call_format!r} is not one of {', '.join(FORMATS)}")
        call_format = FORMATS[call_format]()
    if variant != "strict" and call_format.name != "grounding":
        raise ValueError(f"variant {variant!r} reads the grounding format only, not {call_format.name!r}")
    return call_format


def _executed_windows(parsed: Sequence[ParsedTurn], executed: Sequence[bool | Interval] | None) -> list[Interval]:
    calls = [call for turn in parsed for call in turn.crops]
    flags = [True] * len(calls) if executed is None else executed
    if len(flags) != len(calls):
        raise ValueError(f"executed has {len(flags)} flags for {len(calls)} well-formed calls")
    windows = [(call.start_seconds, call.end_seconds) for call in calls]
    return [done if isinstance(done, tuple) else window for window, done in zip(windows, flags, strict=True) if done]


def _public_evidence(trajectory: Trajectory, variant: str) -> _Evidence:
    turns = trajectory.turns
    prediction = last_answer(turns[-1]) if turns else None
    right = prediction is not None and public_match(prediction, trajectory.answer)
    format_score, num_calls = public_format(turns)
    windows = public_windows(turns)
    clue = clue_score(windows, trajectory.clues)
    if variant == "paper":
        return _Evidence(float(right), format_score, float(len(windows) > 0), clue, len(windows), right)
    bonus_open = right and format_score == 1
    return _Evidence(float(right), format_score, float(num_calls > 0), clue, num_calls, bonus_open)


def _strict_evidence(
    trajectory: Trajectory, parsed: Sequence[ParsedTurn], fits: Sequence[float], attempts: int
) -> _Evidence:
    prediction = parsed[-1].answer if parsed else None
    right = prediction is not None and tolerant_match(prediction, trajectory.answer)
    format_score = strict_format(parsed)
    search, mean_fit = (max(fits), sum(fits) / len(fits)) if fits else (0.0, 0.0)
    return _Evidence(float(right), format_score, search, mean_fit, attempts, right and format_score == 1)


def _with_bonus(trajectory: Trajectory, evidence: _Evidence, variant: str, decay: float) -> RewardParts:
    rule = (_STRICT_RULES if variant == "strict" else _PUBLIC_RULES)[trajectory.kind]
    free_calls = len(trajectory.clues) if rule.free_calls is None else rule.free_calls
    factor = max(0.0, 1.0 - decay * max(0.0, evidence.calls - free_calls))
    search = evidence.search if rule.needs_call else 1.0
    bonus = 0.0
    if evidence.bonus_open and search > 0:
        bonus_score = evidence.clue_score if rule.fixed_score is None else rule.fixed_score
        bonus = (0.5 * search + 0.5 * bonus_score) * factor
    reward = evidence.accuracy * (1 + bonus) + evidence.format
    return RewardParts(reward, evidence.accuracy, evidence.format, evidence.clue_score, factor, bonus, evidence.calls)


def _temporal_grounding(
    trajectory: Trajectory, parsed: Sequence[ParsedTurn], attempts: int, variant: str
) -> RewardParts:
    """Returns R = IoU + format. The public code judges the last turn and the first clue only; `strict` judges all."""
    turns, clues = trajectory.turns, trajectory.clues
    if not clues:
        raise ValueError("kind 'temporal_grounding' needs at least one clue to compare the answer with")
    prediction = last_answer(turns[-1]) if turns else None
    payload = read_object(prediction) if prediction is not None else None
    segment = read_segment(payload.get("temporal_segment")) if payload is not None else None
    in_form = segment is not None and not (isinstance(segment, Fault) and segment.code == "bad_segment")
    truth = clues if variant == "strict" else clues[:1]
    iou = overlap([segment], truth).iou if isinstance(segment, tuple) else 0.0
    judged = strict_format(parsed) if variant == "strict" else public_format(turns[-1:])[0]
    format_score = judged if in_form else 0.0
    return RewardParts(iou + format_score, iou, format_score, 0.0, 1.0, 0.0, attempts)

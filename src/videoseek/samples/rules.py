"""The rules for a sample, a function for each group of rules, and the gate before every training run.

A rule yields a `Problem`: a stable code and a sentence. The codes in `WARNINGS` allow training; all other codes are
errors. The `check` command applies the same rules, and adds rules about pixels, tokens or other records.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from videoseek.rewards.accuracy import option_letter, tolerant_match
from videoseek.samples.readers.rows import Problem
from videoseek.samples.schema import DataError
from videoseek.trajectory.grammar import STRUCTURE_FAULTS, CallFormat
from videoseek.types import MAX_OPTIONS, Interval, ParsedTurn, Sample
from videoseek.video.decode import probe
from videoseek.video.errors import VideoError
from videoseek.video.index import VideoInfo

WARNINGS = frozenset(
    ("repeated_option", "answer_not_letter", "answer_differs", "no_clue", "duplicate_question", "repeated_key")
    + ("call_reversed", "call_outside", "call_too_short", "truncated", "frames_missing")
)
#: Clue times are often rounded up to whole seconds.
_ROUNDING_SECONDS = 1.0
#: Well-formed calls of an empty window: a trajectory may show the mistake, and the correction in the next turn.
_MENDED_FAULTS = frozenset(("negative_segment", "reversed_segment"))


@dataclass(frozen=True, slots=True)
class Rules:
    """The protocol of a run for trajectories: the grammar, and the limits of episodes and crops."""

    fmt: CallFormat
    max_turns: int
    min_window_seconds: float


def is_error(code: str) -> bool:
    """Returns whether the problem forbids training on the sample."""
    return code not in WARNINGS


@dataclass(frozen=True, slots=True)
class BadSample:
    """The index, the id and the first error of a sample unfit for training."""

    index: int
    id: str
    problem: Problem


def refusal(bad_samples: Sequence[BadSample]) -> DataError:
    """Returns the error that names the bad sample with the lowest index."""
    first = min(bad_samples, key=lambda bad: bad.index)
    return DataError(f"sample {first.id!r}: {first.problem.message}")


def find_bad(
    samples: Sequence[Sample],
    indices: Sequence[int],
    *,
    need_turns: bool,
    need_reward: bool = False,
    rules: Rules | None = None,
    first_only: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[BadSample]:
    """Returns the samples among `indices` that are unfit for training. Opens videos, and decodes no frame.

    Opening a video takes as long as reading the file, so all samples about a video share one opening. With `rules` and
    `need_turns`, the turns of the samples must keep the protocol too. `need_reward` refuses kinds without a reward.
    `on_progress` gets (done, total).
    """
    opened: dict[str, VideoInfo | VideoError] = {}
    bad_samples = []
    for done, index in enumerate(indices, 1):
        sample = samples[index]
        problem = unscored_kind(sample) if need_reward else None
        problem = problem or next(_gate_errors(sample, opened, need_turns=need_turns, rules=rules), None)
        if problem is not None:
            bad_samples.append(BadSample(index, sample.id, problem))
            if first_only:
                break
        if on_progress is not None:
            on_progress(done, len(indices))
    return bad_samples


def _gate_errors(
    sample: Sample, opened: dict[str, VideoInfo | VideoError], *, need_turns: bool, rules: Rules | None
) -> Iterator[Problem]:
    """Yields the errors of one sample; `opened` keeps the facts or the error of each video."""
    yield from filter(_is_error, question_problems(sample))
    if need_turns:
        yield from missing_turns(sample)
        if rules is not None:
            yield from filter(_is_error, turn_problems(sample, rules))
    if sample.video not in opened:
        try:
            opened[sample.video] = probe(sample.video)
        except VideoError as error:
            opened[sample.video] = error
    info = opened[sample.video]
    if isinstance(info, VideoError):
        yield Problem(info.code, info.message)
        return
    yield from filter(_is_error, time_problems(sample, info))


def question_problems(sample: Sample) -> Iterator[Problem]:
    """Yields contradictions among question, options, answer and kind."""
    try:
        "".join((sample.id, sample.question, sample.answer, *sample.options, *sample.turns)).encode()
    except UnicodeEncodeError as error:
        yield Problem("bad_text", f"a text holds {error.object[error.start]!r}, half of a character")
        return
    if len(sample.options) > MAX_OPTIONS:
        yield Problem(
            "too_many_options", f"{len(sample.options)} options; the letters A to Z name at most {MAX_OPTIONS}"
        )
    elif sample.options:
        yield from _option_problems(sample)
    if sample.kind == "temporal_grounding" and not sample.clues:
        yield Problem("nothing_to_ground", "kind 'temporal_grounding' needs a clue, the window that is asked for")
    if sample.kind.endswith("_w_tool") and not sample.clues and not sample.turns:  # recorded turns need no reward
        yield Problem("no_clue", f"kind {sample.kind!r} without a clue: no crop can be rewarded")


def _option_problems(sample: Sample) -> Iterator[Problem]:
    option_words = [option.casefold().split() for option in sample.options]
    repeated = next((option for index, option in enumerate(option_words) if option in option_words[:index]), None)
    if repeated is not None:
        yield Problem("repeated_option", f"two options read {' '.join(repeated)!r}")
    if sample.kind in ("perception", "temporal_grounding"):
        return
    letters = [letter for letter, _ in sample.lettered_options]
    answer = sample.answer.casefold().split()
    if answer in option_words and option_letter(sample.answer) not in letters:
        letter = letters[option_words.index(answer)]
        yield Problem("answer_not_letter", f"answer {sample.answer!r} is the text of option {letter}, not its letter")
    elif option_letter(sample.answer) not in letters:
        yield Problem("bad_option", f"answer {sample.answer!r} is none of the options A to {letters[-1]}")


def unscored_kind(sample: Sample) -> Problem | None:
    """Returns the problem of a sample without a reward, because RL learns from rewards."""
    if sample.kind != "perception":
        return None
    return Problem("no_reward", "kind 'perception' has no reward; it belongs to data.sft, not to data.rl")


def missing_turns(sample: Sample) -> Iterator[Problem]:
    """Yields a problem for a sample without turns, because SFT learns from turns."""
    if not sample.turns:
        yield Problem("no_turns", "the record has no turns; SFT needs the assistant's texts")


def turn_problems(sample: Sample, rules: Rules) -> Iterator[Problem]:
    """Yields the violations of the grammar and of an episode's rules that the texts of a trajectory alone show."""
    if not sample.turns:
        return
    max_turns = 1 if sample.kind == "perception" else rules.max_turns
    if len(sample.turns) > max_turns:
        yield Problem("too_many_turns", f"{len(sample.turns)} turns; an episode of this kind ends after {max_turns}")
    if sample.kind == "perception":  # plain text, outside the protocol
        return
    turns = [rules.fmt.parse(text) for text in sample.turns]
    for number, turn in enumerate(turns, 1):
        yield from _fault_problems(number, turn)
    answered = next((number for number, turn in enumerate(turns[:-1], 1) if turn.answer is not None), None)
    if answered is not None:
        yield Problem("turn_after_answer", f"turn {answered} of {len(turns)} answers, and the episode goes on")
    last = turns[-1]
    if last.answer is not None:
        if sample.options and not tolerant_match(last.answer, sample.answer):
            yield Problem("answer_differs", f"the last turn answers {last.answer!r}, the key is {sample.answer!r}")
    elif not last.faults:
        yield Problem("no_final_answer", f"turn {len(turns)}, the last, calls the tool and does not answer")


def _fault_problems(number: int, turn: ParsedTurn) -> Iterator[Problem]:
    """Yields the first fault of each code."""
    codes: set[str] = set()
    for item in turn.faults:
        code = "bad_turn"
        if item.code not in STRUCTURE_FAULTS:
            code = "call_reversed" if item.code in _MENDED_FAULTS else "bad_call"
        if code not in codes:
            codes.add(code)
            yield Problem(code, f"turn {number}: {item.message}")


def time_problems(sample: Sample, info: VideoInfo) -> Iterator[Problem]:
    """Yields clues, and a shown window, outside the video."""
    for clue in sample.clues:
        if _lies_beyond(clue, info):
            yield Problem("clue_outside", f"clue {_text(clue)} lies beyond the end of {_length(info)}")
    if sample.window is not None and sample.window[1] > info.duration_seconds:
        yield Problem("window_outside", f"window {_text(sample.window)} lies beyond the end of {_length(info)}")


def call_problems(sample: Sample, info: VideoInfo, rules: Rules) -> Iterator[Problem]:
    """Yields calls of the trajectory with windows that the tool would refuse or cut short."""
    for number, text in enumerate(sample.turns, 1):
        for call in rules.fmt.parse(text).crops:
            if call.num_parts is not None:
                continue  # parts of the video, not seconds
            window = call.start_seconds, call.end_seconds
            if _lies_beyond(window, info):
                yield Problem("call_outside", f"turn {number}: window {_text(window)} leaves {_length(info)}")
            elif min(window[1], info.duration_seconds) - window[0] < rules.min_window_seconds - 1e-6:
                least = f"{rules.min_window_seconds:g} seconds"
                yield Problem("call_too_short", f"turn {number}: window {_text(window)} covers less than {least}")


def _lies_beyond(window: Interval, info: VideoInfo) -> bool:
    return window[0] >= info.duration_seconds or window[1] > info.duration_seconds + _ROUNDING_SECONDS


def _text(window: Interval) -> str:
    return f"[{window[0]:g}, {window[1]:g}]"


def _length(info: VideoInfo) -> str:
    return f"{info.path} ({info.duration_seconds:.1f} seconds)"


def _is_error(problem: Problem) -> bool:
    return is_error(problem.code)

"""A recorded conversation about one video as a sample.

Kept: the question of the first user turn, every assistant turn, the answer. Dropped, since the tool makes them anew:
observations, time sentences, `<video>` marks, the system prompt. Checked before that: one mark a medium, and what a
call asked for against what its medium shows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from videoseek.samples.readers.calls import parse_turns, with_own_arguments
from videoseek.samples.readers.kinds import answer_window, kind_from_evidence
from videoseek.samples.readers.rows import Place
from videoseek.samples.schema import RecordError, checked_sample
from videoseek.types import MAX_OPTIONS, Call, Interval, ParsedTurn, Sample, letter_options

VIDEO_MARK = "<video>"
_TIME_SENTENCE = re.compile(
    r"This video is uniformly sampled at [\d.]+ fps, contains [\d.]+ frames from [\d.]+ seconds to [\d.]+ seconds\.[ ]?"
)
_OPTION = re.compile(r"\(?([A-Z])[.):] *(\S.*)")
_TAGS = ("<think>", "<answer>", "<grounding>", "<tool_call>")
#: Calls are written to 0.1 s.
_ROUNDING_SECONDS = 0.0501


@dataclass(frozen=True, slots=True)
class Message:
    """role is system, user (observations too) or assistant; no two of the same role stand side by side."""

    role: str
    text: str


@dataclass(frozen=True, slots=True)
class Medium:
    """A video as the record names it; `window` is what it shows of the source, None for all of it or not said."""

    video: str
    window: Interval | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """What a record says beside its conversation."""

    id: str
    question: str | None = None
    answer: str | None = None
    kind: str | None = None
    clues: tuple[Interval, ...] = ()


def sample_from_conversation(
    messages: Sequence[Message], media: Sequence[Medium], facts: Facts, place: Place, *, implicit_mark: bool = False
) -> Sample:
    """Raises RecordError. implicit_mark: a single medium may go without its mark."""
    question, rounds = split_rounds(messages)
    check_media(question, rounds, media, implicit_mark=implicit_mark)
    turns = tuple(with_own_arguments(text.strip()) for text, _ in rounds)
    parsed = parse_turns(turns)
    check_windows(parsed, [text for _, text in rounds], media)
    asked, options = split_options(without_media(question))
    if facts.question is not None:
        asked, own_options = split_options(facts.question)
        options = own_options or options
    answer, kind = facts.answer, facts.kind
    if answer is None:
        answer, kind = recorded_answer(turns, parsed, kind)
    _check_rounds(parsed)
    clues = facts.clues
    if not clues and (window := answer_window(answer)) is not None:
        clues = (window,)  # what is asked for is the evidence
    return checked_sample(
        id=facts.id,
        video=place.locate(media[0].video),
        question=asked,
        options=options,
        answer=answer,
        kind=kind or kind_from_evidence(answer, clues, parsed),
        clues=clues,
        turns=turns,
    )


def split_rounds(messages: Sequence[Message]) -> tuple[str, list[tuple[str, str]]]:
    """The question, and each assistant text with the user text that follows it (empty after the last)."""
    talk = [message for message in messages if message.role != "system"]
    if not talk or talk[0].role != "user":
        raise RecordError("no_turns", "the conversation does not begin with a user turn")
    texts = [message.text for message in talk[1:]] + [""] * (len(talk) % 2 == 0)
    return talk[0].text, list(zip(texts[::2], texts[1::2], strict=True))


def check_media(question: str, rounds: Sequence[tuple[str, str]], media: Sequence[Medium], implicit_mark: bool) -> None:
    """One mark a medium, all media of one video. Raises RecordError."""
    if not media:
        raise RecordError("bad_media", "the record has no video")
    marks = question.count(VIDEO_MARK) + sum(said.count(VIDEO_MARK) + shown.count(VIDEO_MARK) for said, shown in rounds)
    if marks != len(media) and not (implicit_mark and (marks, len(media)) == (0, 1)):
        raise RecordError("marks_mismatch", f"{marks} {VIDEO_MARK} marks for {len(media)} videos")
    if question.count(VIDEO_MARK) > 1 or any(VIDEO_MARK in said for said, _ in rounds):
        raise RecordError("marks_mismatch", f"a question has one {VIDEO_MARK} mark and an assistant turn has none")
    if others := {medium.video for medium in media} - {media[0].video}:
        raise RecordError("bad_media", f"one video a record, but this has {media[0].video!r} and {min(others)!r}")


def check_windows(parsed: Sequence[ParsedTurn], observations: Sequence[str], media: Sequence[Medium]) -> None:
    """Each medium of an observation shows what a call of the turn before it asked for. Raises RecordError.

    A call without a medium has failed; media follow the order of calls.
    """
    following = iter(media[1:])
    for number, (turn, observation) in enumerate(zip(parsed, observations, strict=True), 1):
        calls = iter(turn.calls)
        for _ in range(observation.count(VIDEO_MARK)):
            medium = next(following)
            if not any(_shows(medium, call) for call in calls):  # consumes the calls up to the one that fits
                asked = ", ".join(f"[{call.start_seconds:g}, {call.end_seconds:g}]" for call in turn.calls) or "nothing"
                shown = "a clip" if medium.window is None else f"[{medium.window[0]:g}, {medium.window[1]:g}]"
                raise RecordError("window_mismatch", f"turn {number} asks for {asked} but is shown {shown}")


def _shows(medium: Medium, call: Call) -> bool:
    asked = (call.start_seconds, call.end_seconds)
    return medium.window is None or all(
        abs(a - b) <= _ROUNDING_SECONDS for a, b in zip(medium.window, asked, strict=True)
    )


def without_media(text: str) -> str:
    """A user text without marks and time sentences."""
    return _TIME_SENTENCE.sub("", text.replace(VIDEO_MARK, "")).strip()


def split_options(text: str) -> tuple[str, tuple[str, ...]]:
    """Question and options, where consecutive lines are lettered from A on; prompts letter them anew."""
    lines = text.splitlines()
    for first in range(len(lines)):
        options: list[str] = []
        for letter, line in letter_options(lines[first : first + MAX_OPTIONS]):
            option = _OPTION.fullmatch(line.strip())
            if option is None or option[1] != letter:
                break
            options.append(option[2])
        if len(options) > 1:
            before = lines[: first - 1] if first and lines[first - 1].strip() == "Options:" else lines[:first]
            rest = "\n".join(before + lines[first + len(options) :])
            return rest.removeprefix("Question:").strip(), tuple(options)
    return text.removeprefix("Question:").strip(), ()


def recorded_answer(turns: Sequence[str], parsed: Sequence[ParsedTurn], kind: str | None) -> tuple[str, str | None]:
    """Answer and kind of a trajectory: what its last turn answers, or all it says when it knows no tags at all."""
    if not turns:
        raise RecordError("no_answer", "the record has neither an answer nor a turn that gives one")
    if parsed[-1].answer is not None:
        return parsed[-1].answer, kind
    if len(turns) == 1 and not any(tag in turns[0] for tag in _TAGS):
        return turns[0], "perception"
    raise RecordError("no_answer", f"the last of {len(turns)} turns gives no answer between <answer> tags")


def _check_rounds(parsed: Sequence[ParsedTurn]) -> None:
    """An answer ends a trajectory; a turn before it that tries no call would be answered by nothing."""
    for number, turn in enumerate(parsed[:-1], 1):
        if turn.answer is not None:
            raise RecordError("bad_turn", f"turn {number} of {len(parsed)} answers already")
        if any(fault.code == "no_action" for fault in turn.faults):
            raise RecordError("bad_turn", f"turn {number} of {len(parsed)} neither calls the tool nor answers")

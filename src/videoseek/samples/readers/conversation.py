"""Turns a recorded conversation about one video into a sample.

The sample keeps the question of the first user turn, every assistant turn, and the answer. The sample drops
observations, time sentences, `<video>` marks and the system prompt, since the tool and the run's prompt produce the
same parts again. Two checks come first: each medium has one mark, and each medium shows the window of the call.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from videoseek.samples.readers.calls import parse_turns, with_own_arguments
from videoseek.samples.readers.kinds import answer_window, kind_from_evidence
from videoseek.samples.readers.rows import SourceFile
from videoseek.samples.schema import RecordError, checked_sample
from videoseek.types import MAX_OPTIONS, Call, Interval, ParsedTurn, Sample, letter_options

VIDEO_MARK = "<video>"
_TIME_SENTENCE = re.compile(
    r"This video is uniformly sampled at [\d.]+ fps, contains [\d.]+ frames from [\d.]+ seconds to [\d.]+ seconds\.[ ]?"
)
_OPTION = re.compile(r"\(?([A-Z])[.):] *(\S.*)")
_OPTIONS_IN_LINE = re.compile(r"(.*?)\b(?i:options): *(\(?A[.):] .*)")
_RESPONSE = re.compile(r"<tool_response>(.*?)</tool_response>", re.DOTALL)
_TAGS = ("<think>", "<answer>", "<grounding>", "<tool_call>")
#: Calls are written to 0.1 s.
_ROUNDING_SECONDS = 0.0501


@dataclass(frozen=True, slots=True)
class Message:
    """A message; `role` is system, user (observations too) or assistant. Neighbours have different roles."""

    role: str
    text: str


@dataclass(frozen=True, slots=True)
class Medium:
    """A video under the record's name; `window` in seconds is the shown part (None: the whole video, or unknown)."""

    video: str
    window: Interval | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """The fields of a record beside the conversation."""

    id: str
    question: str | None = None
    answer: str | None = None
    kind: str | None = None
    clues: tuple[Interval, ...] = ()


def sample_from_conversation(
    messages: Sequence[Message], media: Sequence[Medium], facts: Facts, file: SourceFile, *, implicit_mark: bool = False
) -> Sample:
    """Returns the sample of a conversation. Raises RecordError.

    With `implicit_mark`, the mark of a single medium is optional.
    """
    question, rounds = split_rounds(split_transcripts(messages))
    check_media(question, rounds, media, implicit_mark=implicit_mark)
    turns = tuple(with_own_arguments(text.strip()) for text, _ in rounds)
    parsed = parse_turns(turns)
    check_windows(parsed, [text for _, text in rounds], media)
    question, options = split_options(without_media(question))
    if facts.question is not None:
        question, own_options = split_options(facts.question)
        options = own_options or options
    answer, kind = facts.answer, facts.kind
    if answer is None:
        answer, kind = recorded_answer(turns, parsed, kind)
    _check_rounds(parsed)
    clues = facts.clues
    if not clues and (window := answer_window(answer)) is not None:
        clues = (window,)  # the requested window of a grounding question is the evidence
    return checked_sample(
        id=facts.id,
        video=file.locate(media[0].video),
        question=question,
        options=options,
        answer=answer,
        kind=kind or kind_from_evidence(answer, clues, parsed),
        clues=clues,
        turns=turns,
    )


def split_transcripts(messages: Sequence[Message]) -> list[Message]:
    """Splits assistant turns at `<tool_response>` blocks. The blocks become user turns.

    LongVT writes a whole trajectory into one assistant turn: call, response, thought, answer. Raises RecordError for a
    response at the beginning of a turn.
    """
    split: list[Message] = []
    for message in messages:
        parts = _RESPONSE.split(message.text) if message.role == "assistant" else [message.text]
        if len(parts) > 1 and not parts[0].strip():
            raise RecordError("bad_turn", "an assistant turn begins with a <tool_response>, which answers no call")
        for index, part in enumerate(parts):
            role = message.role if index % 2 == 0 else "user"
            if index and role == "assistant" and not part.strip():
                continue
            if role == "user" and split and split[-1].role == "user":
                split[-1] = Message("user", f"{split[-1].text}\n{part}")
            else:
                split.append(Message(role, part))
    return split


def split_rounds(messages: Sequence[Message]) -> tuple[str, list[tuple[str, str]]]:
    """Returns the question, and each assistant text with the following user text (empty after the last).

    Raises RecordError unless the conversation begins with a user turn.
    """
    turns = [message for message in messages if message.role != "system"]
    if not turns or turns[0].role != "user":
        raise RecordError("no_turns", "the conversation does not begin with a user turn")
    texts = [message.text for message in turns[1:]] + [""] * (len(turns) % 2 == 0)
    return turns[0].text, list(zip(texts[::2], texts[1::2], strict=True))


def check_media(question: str, rounds: Sequence[tuple[str, str]], media: Sequence[Medium], implicit_mark: bool) -> None:
    """Raises RecordError unless each medium has a mark and all media belong to the same video."""
    if not media:
        raise RecordError("bad_media", "the record has no video")
    marks = question.count(VIDEO_MARK) + sum(turn.count(VIDEO_MARK) + shown.count(VIDEO_MARK) for turn, shown in rounds)
    if marks != len(media) and not (implicit_mark and (marks, len(media)) == (0, 1)):
        raise RecordError("marks_mismatch", f"{marks} {VIDEO_MARK} marks for {len(media)} videos")
    if question.count(VIDEO_MARK) > 1 or any(VIDEO_MARK in turn for turn, _ in rounds):
        raise RecordError("marks_mismatch", f"a question has one {VIDEO_MARK} mark and an assistant turn has none")
    if others := {medium.video for medium in media} - {media[0].video}:
        raise RecordError("bad_media", f"one video a record, but this has {media[0].video!r} and {min(others)!r}")


def check_windows(parsed: Sequence[ParsedTurn], observations: Sequence[str], media: Sequence[Medium]) -> None:
    """Raises RecordError unless each medium of an observation shows the window of a call in the turn before.

    Media follow the order of calls; a failed call has no medium.
    """
    remaining = iter(media[1:])
    for number, (turn, observation) in enumerate(zip(parsed, observations, strict=True), 1):
        calls = iter(turn.crops)
        for _ in range(observation.count(VIDEO_MARK)):
            medium = next(remaining)
            if not any(_shows(medium, call) for call in calls):  # consumes the calls up to the fitting call
                windows = ", ".join(f"[{call.start_seconds:g}, {call.end_seconds:g}]" for call in turn.crops)
                shown = "a clip" if medium.window is None else f"[{medium.window[0]:g}, {medium.window[1]:g}]"
                message = f"turn {number} asks for {windows or 'nothing'} but is shown {shown}"
                raise RecordError("window_mismatch", message)


def _shows(medium: Medium, call: Call) -> bool:
    window = (call.start_seconds, call.end_seconds)
    return medium.window is None or all(
        abs(a - b) <= _ROUNDING_SECONDS for a, b in zip(medium.window, window, strict=True)
    )


def without_media(text: str) -> str:
    """Removes marks and time sentences from a user text."""
    return _TIME_SENTENCE.sub("", text.replace(VIDEO_MARK, "")).strip()


def split_options(text: str) -> tuple[str, tuple[str, ...]]:
    """Returns the question and the options without their letters.

    Options are consecutive lines lettered from A on, or follow `Options:` in one line (`Options: A. cat B. dog`).
    """
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
    for number, line in enumerate(lines):
        if (match := _OPTIONS_IN_LINE.fullmatch(line.strip())) is None:
            continue
        in_line = _options_in_line(match[2])
        if len(in_line) > 1 and all(in_line):
            rest = "\n".join([*lines[:number], match[1].rstrip(), *lines[number + 1 :]])
            return rest.removeprefix("Question:").strip(), in_line
    return text.removeprefix("Question:").strip(), ()


def _options_in_line(line: str) -> tuple[str, ...]:
    """Splits `A. cat B. dog` before the letters B, C, .. in the order of the alphabet."""
    options: list[str] = []
    rest = line
    for letter in "BCDEFGHIJKLMNOPQRSTUVWXYZ":
        before, *after = re.split(rf"\s+(?=\(?{letter}[.):] )", rest, maxsplit=1)
        options.append(before)
        if not after:
            break
        rest = after[0]
    else:
        options.append(rest)
    return tuple(re.sub(r"^\(?[A-Z][.):] *", "", option).rstrip(" ,;") for option in options)


def recorded_answer(turns: Sequence[str], parsed: Sequence[ParsedTurn], kind: str | None) -> tuple[str, str | None]:
    """Returns answer and kind of a trajectory.

    The last turn gives the answer. A single turn of plain text is the whole answer, of kind perception. Raises
    RecordError for a trajectory without an answer.
    """
    if not turns:
        raise RecordError("no_answer", "the record has neither an answer nor a turn that gives one")
    if parsed[-1].answer is not None:
        return parsed[-1].answer, kind
    if len(turns) == 1 and not any(tag in turns[0] for tag in _TAGS):
        return turns[0], "perception"
    raise RecordError("no_answer", f"the last of {len(turns)} turns gives no answer between <answer> tags")


def _check_rounds(parsed: Sequence[ParsedTurn]) -> None:
    """Raises RecordError unless every turn before the last calls the tool and gives no answer."""
    for number, turn in enumerate(parsed[:-1], 1):
        if turn.answer is not None:
            raise RecordError("bad_turn", f"turn {number} of {len(parsed)} answers already")
        if any(fault.code == "no_action" for fault in turn.faults):
            raise RecordError("bad_turn", f"turn {number} of {len(parsed)} neither calls the tool nor answers")

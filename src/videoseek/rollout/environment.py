"""Environment: opens an episode, answers each of the model's turns, and ends the episode.

SFT replays recorded turns through the environment. Rollout and evaluation sample turns. All see the same observations.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from videoseek.tools.crop import VideoCrop
from videoseek.tools.side_by_side import side_by_side
from videoseek.tools.tool import Observation, Tool
from videoseek.trajectory.builder import EpisodeBuilder
from videoseek.trajectory.grammar import CallFormat
from videoseek.trajectory.vocabulary import Vocabulary
from videoseek.types import Call, CallRecord, Clip, Episode, Fault, ParsedTurn, Sample, StopReason, ToolCall
from videoseek.video.decode import prefetch, probe
from videoseek.video.errors import VideoError
from videoseek.video.quotas import crop_clip, overview_clip


@dataclass(frozen=True, slots=True)
class Environment:
    """The rules of an episode: the most assistant turns, the most tokens, and the `note` at an observation's end.

    `tool` answers calls of the crop tool, and `tools` answer all other calls, by name.
    """

    vocabulary: Vocabulary
    fmt: CallFormat
    tool: VideoCrop
    max_turns: int
    max_context_tokens: int
    note: Callable[[Sample, Sequence[CallRecord]], str] = lambda sample, records: ""
    tools: Mapping[str, Tool] = field(default_factory=dict)
    calls_per_turn: int = 5
    tool_deadline_seconds: float | None = None

    def prompt_clip(self, sample: Sample) -> Clip:
        """Returns the first clip of an episode. Raises VideoError for an unreadable video."""
        info = probe(sample.video)
        if sample.window is None:
            return overview_clip(info, self.tool.limits)
        return crop_clip(info, *sample.window, "medium", self.tool.limits)

    def open(self, sample: Sample) -> EpisodeBuilder:
        """Returns an episode with its prompt. Raises VideoError for an unreadable video."""
        clip = self.prompt_clip(sample)
        builder = EpisodeBuilder(sample, self.vocabulary, self.fmt)
        builder.prompt(clip)
        return builder

    def prefetch_calls(self, builder: EpisodeBuilder, parsed: ParsedTurn) -> None:
        """Begins to decode the clips that `respond` will read, so that the calls of many episodes decode together."""
        if self._ends(builder, parsed):
            return  # `respond` runs no call, and clips without a reader would fill the cache
        for call in parsed.crops[: self.calls_per_turn]:
            try:
                clip = self.tool.plan(builder.sample.video, call)
            except VideoError:
                continue  # `respond` meets the error again and answers it
            if isinstance(clip, Clip):
                prefetch([clip])

    def _ends(self, builder: EpisodeBuilder, parsed: ParsedTurn) -> bool:
        """Returns whether a turn ends its episode without running its calls."""
        return parsed.answer is not None or builder.sample.kind == "perception" or builder.num_turns >= self.max_turns

    def respond(self, builder: EpisodeBuilder, parsed: ParsedTurn) -> StopReason | None:
        """Answers the last turn: appends an observation and returns None, or returns the reason for the end."""
        return self._respond(builder, parsed, self._run, self.max_context_tokens)

    def _respond(
        self,
        builder: EpisodeBuilder,
        parsed: ParsedTurn,
        answer: Callable[[str, Call | ToolCall], Observation],
        max_tokens: int,
    ) -> StopReason | None:
        # An answer beside a call ends the episode: the model answered before seeing the call's evidence. A perception
        # sample always has exactly one turn.
        if parsed.answer is not None or builder.sample.kind == "perception":
            return StopReason.ANSWERED
        # The last turn must answer: the observation of a call would have no reader.
        if builder.num_turns >= self.max_turns:
            return StopReason.TURN_LIMIT if parsed.calls else StopReason.NO_CALL_NO_ANSWER
        turn = builder.num_turns - 1
        # A turn without a readable call is also recorded: the model reads the faults and may try again.
        records = self._answer_calls(builder, parsed, answer) if parsed.calls else [CallRecord(turn, None)]
        note = self.note(builder.sample, records)
        if builder.num_turns == self.max_turns - 1 and self.fmt.last_turn_notice not in note:
            note += self.fmt.last_turn_notice
        fits = builder.observe(records, parsed.faults, max_tokens=max_tokens, note=note)
        return None if fits else StopReason.CONTEXT_FULL

    def _answer_calls(
        self, builder: EpisodeBuilder, parsed: ParsedTurn, answer: Callable[[str, Call | ToolCall], Observation]
    ) -> list[CallRecord]:
        """Answers the first `calls_per_turn` calls side by side, and returns all records in the order of the text."""
        video, limit = builder.sample.video, self.calls_per_turn
        earlier = [record.call for record in builder.calls if record.call is not None]
        asked: list[Call | ToolCall | None] = []
        jobs: list[Callable[[], Observation]] = []
        for item in parsed.outcomes():
            asked.append(None if isinstance(item, Fault) else item)
            if isinstance(item, Fault):
                jobs.append(partial(_same, item))
            elif len(asked) > limit:
                refusal = Fault("too_many_calls", f"Only the first {limit} calls of a turn are answered.")
                jobs.append(partial(_same, refusal))
            else:
                call = replace(item, earlier=tuple(earlier)) if isinstance(item, ToolCall) else item
                jobs.append(partial(answer, video, call))
                earlier.append(item)
        results = side_by_side(jobs, self.tool_deadline_seconds)
        return [_record(builder.num_turns - 1, call, result) for call, result in zip(asked, results, strict=True)]

    def _run(self, video: str, call: Call | ToolCall) -> Observation:
        if isinstance(call, Call):
            return self.tool.run(video, call)
        return self.tools[call.name].run(video, call)

    def _plan(self, video: str, call: Call | ToolCall) -> Observation:
        if isinstance(call, Call):
            return self.tool.plan(video, call)
        return self.tools[call.name].plan(video, call)

    def replay(self, sample: Sample) -> Episode:
        """Returns the episode of a recorded trajectory, with the recorded turns and new observations.

        `replay` plans crops, and encoding decodes crops. Decoding a broken crop raises VideoError: SFT must not train
        on an answer from a missing crop. `max_context_tokens` limits sampled episodes only. Raises ValueError for a
        sample without turns, and for turns after the answer or beyond `max_turns`. Raises VideoError for an unreadable
        video.
        """
        if not sample.turns:
            raise ValueError(f"sample {sample.id!r} has no turns to train on")
        builder = self.open(sample)
        *before, last = sample.turns
        for number, text in enumerate(before, 1):
            reason = self._respond(builder, builder.assistant_text(text), self._plan, sys.maxsize)
            if reason is not None:
                raise ValueError(f"turn {number} of {len(sample.turns)} ends the episode of {sample.id!r}: {reason}")
        builder.assistant_text(last)
        return builder.finish(StopReason.REFERENCE)


def _same(fault: Fault) -> Observation:
    return fault


def _record(turn: int, call: Call | ToolCall | None, result: Observation) -> CallRecord:
    if isinstance(result, Clip):
        return CallRecord(turn, call, clip=result)
    if isinstance(result, Fault):
        return CallRecord(turn, call, fault=result)
    return CallRecord(turn, call, text=result)

"""What the model acts in: it opens an episode, answers each turn, and says when the episode is over.

SFT replays recorded turns through it; rollout and evaluation sample turns into it. All see the same observations.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

from videoseek.rollout.crop_tool import VideoCrop
from videoseek.trajectory.builder import EpisodeBuilder
from videoseek.trajectory.grammar import CallFormat
from videoseek.trajectory.vocabulary import Vocabulary
from videoseek.types import Call, CallRecord, Clip, Episode, Fault, ParsedTurn, Sample, StopReason
from videoseek.video.decode import probe
from videoseek.video.quotas import crop_clip, overview_clip

#: What answers a call about a video: `VideoCrop.run` or `VideoCrop.plan`.
Look = Callable[[str, Call], Clip | Fault]


@dataclass(frozen=True, slots=True)
class Environment:
    """The rules of an episode. `max_turns` counts assistant turns, `max_context_tokens` all tokens of an episode."""

    vocabulary: Vocabulary
    fmt: CallFormat
    tool: VideoCrop
    max_turns: int
    max_context_tokens: int

    def open(self, sample: Sample) -> EpisodeBuilder:
        """An episode with its prompt. Raises VideoError when the video cannot be read."""
        info = probe(sample.video)
        if sample.window is None:
            clip = overview_clip(info, self.tool.limits)
        else:
            clip = crop_clip(info, *sample.window, "medium", self.tool.limits)
        builder = EpisodeBuilder(sample, self.vocabulary, self.fmt)
        builder.prompt(clip)
        return builder

    def respond(self, builder: EpisodeBuilder, parsed: ParsedTurn) -> StopReason | None:
        """Ends the episode with a reason, or appends the observation that answers the turn, if it fits.

        An answer ends it even beside a call: it was given before the call's evidence. Perception has one turn only.
        """
        return self._respond(builder, parsed, self.tool.run, self.max_context_tokens)

    def _respond(self, builder: EpisodeBuilder, parsed: ParsedTurn, look: Look, max_tokens: int) -> StopReason | None:
        if parsed.answer is not None or builder.sample.kind == "perception":
            return StopReason.ANSWERED
        if builder.num_turns >= self.max_turns:
            return StopReason.TURN_LIMIT if parsed.calls else StopReason.NO_CALL_NO_ANSWER
        turn = builder.num_turns - 1
        records = [CallRecord(turn, call, *_outcome(look(builder.sample.video, call))) for call in parsed.calls]
        records = records or [CallRecord(turn, None)]
        fits = builder.observe(records, parsed.faults, max_tokens=max_tokens)
        return None if fits else StopReason.CONTEXT_FULL

    def replay(self, sample: Sample) -> Episode:
        """The episode of a recorded trajectory: its turns as they stand, observations made anew.

        Crops are planned, not decoded: their pixels are read when they are encoded, and what cannot be read is no
        observation to train on. `max_context_tokens` limits what is sampled, not what is recorded. Raises ValueError
        when the sample has no trajectory, or one that goes on after its answer or `max_turns`, and VideoError when its
        video cannot be opened.
        """
        if not sample.turns:
            raise ValueError(f"sample {sample.id!r} has no turns to train on")
        builder = self.open(sample)
        *before, last = sample.turns
        for number, text in enumerate(before, 1):
            stop = self._respond(builder, builder.assistant_text(text), self.tool.plan, sys.maxsize)
            if stop is not None:
                raise ValueError(f"turn {number} of {len(sample.turns)} ends the episode of {sample.id!r}: {stop}")
        builder.assistant_text(last)
        return builder.finish(StopReason.REFERENCE)


def _outcome(shown: Clip | Fault) -> tuple[Fault | None, Clip | None]:
    return (None, shown) if isinstance(shown, Clip) else (shown, None)

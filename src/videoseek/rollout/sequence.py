"""SequenceState: an episode during generation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from videoseek.trajectory.builder import EpisodeBuilder
from videoseek.types import Clip, Episode, ParsedTurn, StopReason


@dataclass(slots=True)
class SequenceState:
    """An episode under way: all tokens, the number of cached tokens, and the turn being sampled.

    `next_position` is the M-RoPE position of the first uncached token. `turn_token_ids` and `turn_logprobs` hold the
    sampled turn until `end_turn` appends the turn to the builder.
    """

    builder: EpisodeBuilder
    generator: np.random.Generator
    num_cached_tokens: int = 0
    next_position: int = 0
    turn_token_ids: list[int] = field(default_factory=list)
    turn_logprobs: list[float] = field(default_factory=list)
    turn_is_over: bool = False
    stop_reason: StopReason | None = None

    def pending_tokens(self) -> list[int]:
        """Returns the tokens to feed before the next sampled token: the end of the last turn and its observation."""
        return self.builder.token_ids[self.num_cached_tokens :]

    def pending_clips(self) -> list[Clip]:
        """Returns the clips of the pending tokens. Pending tokens are a suffix: the clips are the last clips."""
        num_clips = self.pending_tokens().count(self.builder.vocabulary.vision_start)
        return self.builder.clips[len(self.builder.clips) - num_clips :]

    def append(self, token_id: int, logprob: float, max_context_tokens: int) -> None:
        """Appends a sampled token. The turn ends at the end-of-turn token or in a full context."""
        self.turn_token_ids.append(token_id)
        self.turn_logprobs.append(logprob)
        num_free_tokens = max_context_tokens - len(self.builder.token_ids)
        # A turn ends at its end-of-turn token only, and never at a stop string: SFT trains the end-of-turn token, and
        # text after a call is a format fault for RL to penalise.
        self.turn_is_over = token_id == self.builder.vocabulary.im_end or len(self.turn_token_ids) >= num_free_tokens

    def end_turn(self) -> ParsedTurn:
        """Appends the sampled turn to the episode and clears the turn's buffers."""
        token_ids, self.turn_token_ids = self.turn_token_ids, []
        logprobs, self.turn_logprobs = self.turn_logprobs, []
        self.turn_is_over = False
        return self.builder.assistant_tokens(token_ids, logprobs)


def finish_group(group: Sequence[SequenceState], weight_version: int) -> list[Episode]:
    """Returns the episodes of a prompt, or [] if any episode of the group is incomplete.

    Advantages compare all members of a group: an incomplete group is useless.
    """
    outcomes = [(sequence.builder, sequence.stop_reason) for sequence in group]
    episodes = [builder.finish(reason, weight_version) for builder, reason in outcomes if reason is not None]
    return episodes if len(episodes) == len(group) else []

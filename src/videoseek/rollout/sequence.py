"""What the native sampler holds of its sequences: films and prompts that sequences share, and the sequences."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
import torch

from videoseek.model.kv_cache import Slot, Tokens
from videoseek.rollout.sampler import SampledTurn, TurnSettings, TurnStop
from videoseek.rollout.sampling import stream_uniforms
from videoseek.types import Clip


@dataclass(slots=True, eq=False)
class Film:
    """The leading tokens of prompts up to their last clip, fed once for all prompts that begin with them.

    `queue` holds the sequences without room in the cache. The pass sets `tokens` and the M-RoPE position behind them.
    """

    ids: Sequence[int]
    clips: Sequence[Clip]
    prompts: dict[tuple[int, ...], Prompt] = field(default_factory=dict)
    queue: list[CachedSequence] = field(default_factory=list)
    tokens: Tokens | None = None
    next_position: int = 0

    def waiting(self) -> list[Prompt]:
        """Returns the prompts of admitted sequences without a slot."""
        return [prompt for prompt in self.prompts.values() if prompt.waiting]


@dataclass(slots=True, eq=False)
class Prompt:
    """The rest of a prompt behind its film, fed once for all sequences with this prompt.

    `waiting` sequences have room in the cache and no slot yet. The pass sets `tokens` and the last token's `logits`.
    """

    film: Film
    ids: Sequence[int]
    waiting: list[CachedSequence] = field(default_factory=list)
    tokens: Tokens | None = None
    next_position: int = 0
    logits: torch.Tensor | None = None

    clips: Sequence[Clip] = ()


@dataclass(slots=True, eq=False)
class CachedSequence:
    """A sequence: its slot in the cache, its tokens and clips outside the cache, and the turn under way.

    `next_position` is the M-RoPE position of the first token outside the cache.
    """

    prompt: Prompt
    settings: TurnSettings
    future: Future[SampledTurn] = field(default_factory=Future)
    slot: Slot | None = None
    next_position: int = 0
    ids: list[int] = field(default_factory=list)
    clips: Sequence[Clip] = ()
    uniforms: np.ndarray = field(default_factory=lambda: np.zeros(0))
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def begin_turn(self, settings: TurnSettings) -> Future[SampledTurn]:
        """Clears the last turn and draws the random numbers of the next one."""
        self.future, self.settings = Future(), settings
        self.token_ids, self.logprobs, self.seconds = [], [], 0.0
        self.uniforms = stream_uniforms(settings.stream, settings.num_drawn, settings.max_new_tokens)
        return self.future

    def num_reserved(self, is_shared: bool) -> int:
        """Returns the tokens that a new sequence reserves in a cache: its prompt and its first turn."""
        num_film = 0 if is_shared else len(self.prompt.film.ids)
        return num_film + len(self.prompt.ids) + self.settings.max_new_tokens

    def step(self, seconds: float) -> None:
        """Counts a fed token, which took `seconds` of the model's time."""
        if self.slot is not None:
            self.slot.length += 1
        self.next_position += 1
        self.seconds += seconds

    def append(self, token_id: int, logprob: float, end_id: int) -> TurnStop | None:
        """Appends a sampled token. Returns the reason for the end of the turn, or None.

        A turn ends at its end-of-turn token, and never at a stop string: SFT trains the end-of-turn token, and text
        after a call is a format fault for RL to penalise.
        """
        self.ids = [token_id]
        self.token_ids.append(token_id)
        self.logprobs.append(logprob)
        if token_id == end_id:
            return TurnStop.END
        if len(self.token_ids) >= self.settings.max_new_tokens:
            return TurnStop.LENGTH
        limit = self.settings.max_seconds
        return TurnStop.DEADLINE if limit is not None and self.seconds >= limit else None

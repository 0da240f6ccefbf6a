"""Sampler: the seam between the episode loop and the engine that samples tokens, in this process or in another one.

Only token ids, references to clips, keys of random streams and limits cross the seam. A sampler knows nothing of
questions, tools and rewards.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import torch

from videoseek.types import Clip


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """Sampling parameters of a rollout, and the limits of each episode. `temperature` 0 is greedy.

    `deadline_seconds` counts the model's own time of an episode (`SampledTurn.seconds`); None is no limit.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens_per_turn: int = 8192
    deadline_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class TurnSettings:
    """Sampling parameters and limits of one turn. A turn has at least one token.

    `stream` is the key of the episode's random stream, with `num_drawn` draws in earlier turns. `max_seconds` is the
    rest of the episode's deadline (None: no limit).
    """

    temperature: float
    top_p: float
    max_new_tokens: int
    stream: int
    num_drawn: int
    max_seconds: float | None = None


class TurnStop(StrEnum):
    """The reason for the end of a turn: the end-of-turn token, `max_new_tokens` or `max_seconds`."""

    END = "end"
    LENGTH = "length"
    DEADLINE = "deadline"


@dataclass(frozen=True, slots=True)
class SampledTurn:
    """A sampled turn with a log-prob and a weight version for each token.

    `seconds` is the turn's share of the model's time: each sequence of a pass takes its share of the pass's tokens.
    Prompts, waiting, reading videos and the work for other episodes count nothing. vLLM tells no such shares: its steps
    count, prompts included, divided evenly among the turns under way.
    """

    token_ids: list[int]
    logprobs: list[float]
    weight_versions: list[int]
    stop: TurnStop
    seconds: float


class Sampler(Protocol):
    """Samples the turns of many sequences side by side. One thread calls the methods.

    A sampler in another process resolves futures in a thread of its own, a sampler in this process inside `work`.
    """

    #: Whether answers of tools must come in the order of the turns, before the next `work`. Rounding may depend on the
    #: rows of a pass: only then does a resumed run repeat every bit.
    in_order: bool

    def submit(
        self, sequence_id: str, new_ids: Sequence[int], new_clips: Sequence[Clip], settings: TurnSettings
    ) -> Future[SampledTurn]:
        """Appends tokens to a sequence, new or known, and queues its next turn. Returns at once.

        The sampler itself keeps the sampled tokens: `new_ids` are the prompt, later an observation. `new_clips` belong
        to the runs of video pads in `new_ids`, in order. The future raises VideoError for an unreadable clip.
        """

    def work(self) -> bool:
        """Does a small part of the queued work in the caller's thread. Returns False for nothing to do."""

    def forget(self, sequence_id: str) -> None:
        """Drops a sequence and everything cached for it, also during a turn. An unknown id has no effect."""

    def load(self, weights: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """Takes over the named weights: none if the sampler shares the trainer's. Later tokens carry `version`."""

    def close(self) -> None:
        """Frees memory and processes. Open futures raise an error."""

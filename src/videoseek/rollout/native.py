"""The native engine: batched multi-turn generation on the training model itself.

A group shares the encoding and the prefill of its prompt; keys and values are kept across turns, so that a turn costs
its own new tokens only. Episodes go through turns side by side; within a turn every running episode takes one token a
pass.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from videoseek.model.attention import CachedAttention
from videoseek.model.policy import Policy
from videoseek.model.positions import mrope_positions
from videoseek.rollout.environment import Environment
from videoseek.rollout.sampling import episode_generator, sample_tokens
from videoseek.trajectory.builder import EpisodeBuilder
from videoseek.types import Clip, Episode, Sample, StopReason


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """How turns are sampled; limits per turn and per episode. `temperature` 0 is greedy."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens_per_turn: int = 8192
    deadline_seconds: float = 600.0
    episodes_per_batch: int = 64


@dataclass(slots=True)
class _Runner:
    """An episode under way: what the cache holds of it, and the turn that is being sampled."""

    builder: EpisodeBuilder
    generator: np.random.Generator
    cached_tokens: int
    next_position: int
    turn_ids: list[int] = field(default_factory=list)
    turn_logprobs: list[float] = field(default_factory=list)
    turn_over: bool = False
    stop: StopReason | None = None

    def pending(self) -> tuple[list[int], list[Clip]]:
        """What must be fed before the next token: the end of the last turn and the observation after it."""
        token_ids = self.builder.token_ids[self.cached_tokens :]
        num_clips = token_ids.count(self.builder.vocabulary.vision_start)
        return token_ids, self.builder.clips[len(self.builder.clips) - num_clips :]


class NativeEngine:
    """Samples episodes from a policy; the policy's weights may change between calls of `rollout`."""

    def __init__(
        self, policy: Policy, environment: Environment, tokens_per_second: float, *, keep_features: bool = False
    ) -> None:
        """`keep_features` keeps every clip's features until `forget`, for a trainer whose vision tower is frozen."""
        self.policy = policy
        self.environment = environment
        self.tokens_per_second = tokens_per_second
        self.keep_features = keep_features
        self.features: dict[Clip, torch.Tensor] = {}
        self.num_encoded_clips = 0

    @torch.no_grad()
    def rollout(
        self,
        samples: Sequence[Sample],
        copies: int,
        seed: int,
        settings: SamplingSettings,
        *,
        weight_version: int = 0,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[list[Episode]]:
        """`copies` episodes for each sample, grouped by sample. Raises VideoError when a video cannot be read."""
        training = self.policy.training
        self.policy.eval()
        per_wave = max(1, settings.episodes_per_batch // copies)
        groups: list[list[Episode]] = []
        for first in range(0, len(samples), per_wave):
            groups += self._wave(samples[first : first + per_wave], copies, seed, settings, weight_version)
            if not self.keep_features:
                self.forget()
            if on_progress is not None:
                on_progress(len(groups) * copies, len(samples) * copies)
        self.policy.train(training)
        return groups

    def forget(self) -> None:
        """Drops all features, which belong to the weights that made them."""
        self.features.clear()

    def _wave(
        self, samples: Sequence[Sample], copies: int, seed: int, settings: SamplingSettings, weight_version: int
    ) -> list[list[Episode]]:
        deadline = time.monotonic() + settings.deadline_seconds
        runners, cache, logits = self._open(samples, copies, seed)
        running = list(range(len(runners)))
        while running:
            self._sample_turn([runners[i] for i in running], cache, logits, settings, deadline)
            kept = []
            for row, index in enumerate(running):
                self._finish_turn(runners[index], settings, deadline)
                if runners[index].stop is None:
                    kept.append(row)
            running = [running[row] for row in kept]
            if running:
                cache, logits = self._feed_pending([runners[i] for i in running], cache, kept)
        episodes = [runner.builder.finish(runner.stop or StopReason.DEADLINE, weight_version) for runner in runners]
        return [episodes[first : first + copies] for first in range(0, len(episodes), copies)]

    def _open(
        self, samples: Sequence[Sample], copies: int, seed: int
    ) -> tuple[list[_Runner], CachedAttention, torch.Tensor]:
        """Prompts are fed once a sample; their cache is then shared out to the copies."""
        prompts = [
            _Runner(self.environment.open(sample), episode_generator(seed, sample.id, 0), 0, 0) for sample in samples
        ]
        cache = self._new_cache(len(samples), max(len(prompt.builder.token_ids) for prompt in prompts))
        logits = self._extend(prompts, cache, [prompt.pending() for prompt in prompts])
        runners = [
            _Runner(
                self.environment.open(sample) if copy else prompt.builder,
                episode_generator(seed, sample.id, copy),
                prompt.cached_tokens,
                prompt.next_position,
            )
            for sample, prompt in zip(samples, prompts, strict=True)
            for copy in range(copies)
        ]
        rows = torch.arange(len(samples), device=self.policy.device).repeat_interleave(copies)
        return runners, cache.select(rows, cache.capacity), logits[rows]

    def _new_cache(self, num_sequences: int, capacity: int) -> CachedAttention:
        config = self.policy.model.config.text_config
        head_size = config.hidden_size // config.num_attention_heads
        shape = (num_sequences, config.num_key_value_heads, capacity, head_size)
        return CachedAttention.empty(
            config.num_hidden_layers, shape, self.policy.model.lm_head.weight.dtype, self.policy.device
        )

    def _feed_pending(
        self, runners: list[_Runner], cache: CachedAttention, kept: list[int]
    ) -> tuple[CachedAttention, torch.Tensor]:
        pending = [runner.pending() for runner in runners]
        longest = max(len(token_ids) for token_ids, _ in pending)
        rows = torch.tensor(kept, device=self.policy.device)
        cache = cache.select(rows, int(cache.lengths[rows].max()) + longest)
        return cache, self._extend(runners, cache, pending)

    def _sample_turn(
        self,
        runners: list[_Runner],
        cache: CachedAttention,
        logits: torch.Tensor,
        settings: SamplingSettings,
        deadline: float,
    ) -> None:
        """One turn of each runner, ended by the end-of-turn token, the token limit or the deadline."""
        vocabulary = self.environment.vocabulary
        banned = torch.tensor(vocabulary.banned, device=self.policy.device)
        for _ in range(settings.max_new_tokens_per_turn):
            uniforms = None
            if settings.temperature > 0:
                drawn = [0.0 if runner.turn_over else runner.generator.random() for runner in runners]
                uniforms = torch.tensor(drawn, dtype=torch.float64, device=self.policy.device)
            tokens, logprobs = sample_tokens(logits, uniforms, settings.temperature or 1.0, settings.top_p, banned)
            for runner, token, logprob in zip(runners, tokens.tolist(), logprobs.tolist(), strict=True):
                if not runner.turn_over:
                    runner.turn_ids.append(token)
                    runner.turn_logprobs.append(logprob)
                    room = self.environment.max_context_tokens - len(runner.builder.token_ids)
                    runner.turn_over = token == vocabulary.im_end or len(runner.turn_ids) >= room
            if all(runner.turn_over for runner in runners) or time.monotonic() > deadline:
                return
            logits = self._extend_by_one(runners, cache, tokens)

    def _extend_by_one(self, runners: list[_Runner], cache: CachedAttention, tokens: torch.Tensor) -> torch.Tensor:
        """Feeds the token just sampled; a runner whose turn is over takes part but keeps its cache as it was."""
        if int(cache.lengths.max()) + 1 > cache.capacity:
            cache.reserve(max(64, cache.capacity // 4))
        positions = torch.tensor([runner.next_position for runner in runners], device=self.policy.device)
        alive = torch.tensor([not runner.turn_over for runner in runners], device=self.policy.device)
        for runner in runners:
            if not runner.turn_over:
                runner.cached_tokens += 1
                runner.next_position += 1
        none = torch.zeros(0, dtype=torch.long, device=self.policy.device)
        embeddings = self.policy.embed(tokens, none, self.policy.encode([]))
        return self.policy.extend(cache, embeddings[:, None], positions.expand(3, -1)[..., None], alive.long())

    def _finish_turn(self, runner: _Runner, settings: SamplingSettings, deadline: float) -> None:
        token_ids, runner.turn_ids = runner.turn_ids, []
        logprobs, runner.turn_logprobs = runner.turn_logprobs, []
        runner.turn_over = False
        parsed = runner.builder.assistant_tokens(token_ids, logprobs)
        if token_ids[-1] != self.environment.vocabulary.im_end:
            out_of_time = time.monotonic() > deadline
            full = len(runner.builder.token_ids) >= self.environment.max_context_tokens
            limit = StopReason.CONTEXT_FULL if full else StopReason.TOKEN_LIMIT
            runner.stop = StopReason.DEADLINE if out_of_time else limit
            return
        sampled = list(runner.builder.token_ids)
        runner.stop = self.environment.respond(runner.builder, parsed)
        if runner.builder.token_ids[: len(sampled)] != sampled:
            raise RuntimeError(f"episode of {runner.builder.sample.id!r}: an observation changed earlier tokens")

    def _extend(
        self, runners: list[_Runner], cache: CachedAttention, pending: list[tuple[list[int], list[Clip]]]
    ) -> torch.Tensor:
        """Feeds each runner its pending tokens, padded to the longest; logits [B, V] after the last of each."""
        self._encode([clip for _, clips in pending for clip in clips])
        vocabulary, device = self.environment.vocabulary, self.policy.device
        longest = max(len(token_ids) for token_ids, _ in pending)
        token_ids = torch.full((len(runners), longest), vocabulary.im_end)
        positions = torch.zeros(3, len(runners), longest, dtype=torch.long)
        features = []
        for row, (runner, (ids, clips)) in enumerate(zip(runners, pending, strict=True)):
            token_ids[row, : len(ids)] = torch.tensor(ids)
            positions[:, row, : len(ids)], runner.next_position = mrope_positions(
                ids, clips, vocabulary.video_pad, self.tokens_per_second, start=runner.next_position
            )
            runner.cached_tokens += len(ids)
            features += [self.features[clip] for clip in clips]
        flat = token_ids.flatten().to(device)
        vision_rows = (flat == vocabulary.video_pad).nonzero()[:, 0]
        embeddings = self.policy.embed(flat, vision_rows, torch.cat(features) if features else self.policy.encode([]))
        num_valid = torch.tensor([len(ids) for ids, _ in pending], device=device)
        return self.policy.extend(cache, embeddings.view(len(runners), longest, -1), positions.to(device), num_valid)

    def _encode(self, clips: list[Clip]) -> None:
        """Features of clips not seen in this rollout; every distinct clip is encoded once."""
        fresh = list(dict.fromkeys(clip for clip in clips if clip not in self.features))
        if fresh:
            encoded = self.policy.encode(fresh).split([clip.num_tokens for clip in fresh])
            self.features.update(zip(fresh, encoded, strict=True))
            self.num_encoded_clips += len(fresh)

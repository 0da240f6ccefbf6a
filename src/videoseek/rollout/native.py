"""The native engine: batched multi-turn generation on the training model itself.

A group shares the encoding and the prefill of its prompt, and on a GPU its keys and values; they are kept across turns,
so that a turn costs its own new tokens only. Episodes go through turns side by side; within a turn every running
episode takes one token a pass.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from videoseek.batches.order import micro_batches
from videoseek.batches.positions import mrope_positions
from videoseek.model.kv_cache import KVCache, SequenceCache, fork
from videoseek.model.policy import Policy
from videoseek.rollout.environment import Environment
from videoseek.rollout.sampling import episode_generator, sample_tokens
from videoseek.trajectory.builder import EpisodeBuilder
from videoseek.types import Clip, Episode, Sample, StopReason
from videoseek.video.errors import VideoError, warn_once

#: Tokens that one pass feeds to the decoder, and merged tokens that one encodes: activations of 7B take 3.5 GiB in
#: the wider of the two (gate, up and product of 18,944 in bfloat16). A pass takes one sequence or clip at least.
_TOKENS_PER_PASS = 2**15


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """How turns are sampled; limits per turn and per episode. `temperature` 0 is greedy.

    The deadline counts from when a batch's prompts are in the cache: opening videos is not the model's time.
    """

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
        skip_unreadable: bool = False,
    ) -> list[list[Episode]]:
        """`copies` episodes for each sample, grouped by sample.

        Raises VideoError when a video cannot be read; with `skip_unreadable` it is named, and its sample's group empty.
        """
        training = self.policy.training
        self.policy.eval()
        per_wave = max(1, settings.episodes_per_batch // copies)
        groups: list[list[Episode]] = []
        for first in range(0, len(samples), per_wave):
            wave = self._open(samples[first : first + per_wave], copies, seed, skip_unreadable)
            self._play([group for group in wave if group], settings, skip_unreadable)
            groups += [_finished(group, weight_version) for group in wave]
            if not self.keep_features:
                self.forget()
            if on_progress is not None:
                on_progress(len(groups) * copies, len(samples) * copies)
        self.policy.train(training)
        return groups

    def forget(self) -> None:
        """Drops all features, which belong to the weights that made them."""
        self.features.clear()

    def _open(self, samples: Sequence[Sample], copies: int, seed: int, skip_unreadable: bool) -> list[list[_Runner]]:
        """The runners of each sample, whose prompts' clips are encoded; none where the video is unreadable."""
        groups: list[list[_Runner]] = []
        for sample in samples:
            try:
                builders = [self.environment.open(sample) for _ in range(copies)]
            except VideoError as error:
                if not skip_unreadable:
                    raise
                warn_once(f"passed over: {error}")
                builders = []
            streams = [episode_generator(seed, sample.id, copy) for copy in range(copies)]
            groups.append([_Runner(*pair, 0, 0) for pair in zip(builders, streams, strict=False)])
        self._encode(
            [clip for group in groups for runner in group[:1] for clip in runner.builder.clips], skip_unreadable
        )
        return [group if all(map(self._can_be_fed, group)) else [] for group in groups]

    def _play(self, groups: list[list[_Runner]], settings: SamplingSettings, skip_unreadable: bool) -> None:
        """Plays all runners to their end, side by side; one whose crop cannot be read is left without a stop."""
        if not groups:
            return
        runners = [runner for group in groups for runner in group]
        cache, logits = self._prefill(groups)
        deadline = time.monotonic() + settings.deadline_seconds
        running = list(range(len(runners)))
        while running:
            self._sample_turn([runners[i] for i in running], cache, logits, settings, deadline)
            for index in running:
                self._finish_turn(runners[index], settings, deadline)
            going_on = [runners[i] for i in running if runners[i].stop is None]
            self._encode([clip for runner in going_on for clip in runner.pending()[1]], skip_unreadable)
            kept = [row for row, i in enumerate(running) if runners[i].stop is None and self._can_be_fed(runners[i])]
            running = [running[row] for row in kept]
            if running:
                logits = self._feed_pending([runners[i] for i in running], cache, kept)

    def _can_be_fed(self, runner: _Runner) -> bool:
        """Whether all clips that it waits for could be read."""
        return all(clip in self.features for clip in runner.pending()[1])

    def _prefill(self, groups: list[list[_Runner]]) -> tuple[SequenceCache, torch.Tensor]:
        """Prompts are fed once a group; their cache is then shared out to the group's runners."""
        prompts = [group[0] for group in groups]
        cache = self._new_cache(len(prompts), max(len(prompt.builder.token_ids) for prompt in prompts))
        logits = self._extend(prompts, cache)
        for group in groups:
            for runner in group[1:]:
                runner.cached_tokens, runner.next_position = group[0].cached_tokens, group[0].next_position
        sizes = [len(group) for group in groups]
        return fork(cache, sizes), logits.repeat_interleave(torch.tensor(sizes, device=logits.device), dim=0)

    def _new_cache(self, num_sequences: int, capacity: int) -> KVCache:
        config = self.policy.model.config.text_config
        head_size = config.hidden_size // config.num_attention_heads
        shape = (num_sequences, config.num_key_value_heads, capacity, head_size)
        return KVCache.empty(
            config.num_hidden_layers, shape, self.policy.model.lm_head.weight.dtype, self.policy.device
        )

    def _feed_pending(self, runners: list[_Runner], cache: SequenceCache, kept: list[int]) -> torch.Tensor:
        """Keeps the rows `kept` of the cache, those of `runners`, and feeds what they wait for; logits [B, V]."""
        longest = max(len(runner.pending()[0]) for runner in runners)
        rows = torch.tensor(kept, device=self.policy.device)
        cache.select(rows, int(cache.lengths[rows].max()) + longest)
        return self._extend(runners, cache)

    def _sample_turn(
        self,
        runners: list[_Runner],
        cache: SequenceCache,
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

    def _extend_by_one(self, runners: list[_Runner], cache: SequenceCache, tokens: torch.Tensor) -> torch.Tensor:
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

    def _extend(self, runners: list[_Runner], cache: SequenceCache) -> torch.Tensor:
        """Feeds each runner its pending tokens, few runners at a time if those are many; logits [B, V] after each."""
        longest = max(len(runner.pending()[0]) for runner in runners)
        passes = micro_batches([longest] * len(runners), _TOKENS_PER_PASS)
        return torch.cat(
            [
                self._extend_at_once(runners[rows[0] : rows[-1] + 1], cache.narrow(rows[0], rows[-1] + 1))
                for rows in passes
            ]
        )

    def _extend_at_once(self, runners: list[_Runner], cache: SequenceCache) -> torch.Tensor:
        """One pass over the pending tokens of all runners, padded to the longest."""
        pending = [runner.pending() for runner in runners]
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

    def _encode(self, clips: list[Clip], skip_unreadable: bool) -> None:
        """Features of clips not seen in this rollout; every distinct clip is encoded once.

        With `skip_unreadable`, clips that cannot be read are named and get no features.
        """
        fresh = list(dict.fromkeys(clip for clip in clips if clip not in self.features))
        for indices in micro_batches([clip.num_tokens for clip in fresh], _TOKENS_PER_PASS):
            self._encode_at_once([fresh[i] for i in indices], skip_unreadable)

    def _encode_at_once(self, clips: list[Clip], skip_unreadable: bool) -> None:
        try:
            encoded = self.policy.encode(clips).split([clip.num_tokens for clip in clips])
        except VideoError as error:
            if not skip_unreadable:
                raise
            if len(clips) == 1:
                warn_once(f"passed over: {error}")
                return
            for clip in clips:
                self._encode_at_once([clip], skip_unreadable)
            return
        self.features.update(zip(clips, encoded, strict=True))
        self.num_encoded_clips += len(clips)


def _finished(group: list[_Runner], weight_version: int) -> list[Episode]:
    """Episodes of one sample's runners; none when one of them could not be played to its end."""
    played = [(runner.builder, runner.stop) for runner in group if runner.stop is not None]
    if len(played) < len(group):
        return []
    return [builder.finish(stop, weight_version) for builder, stop in played]

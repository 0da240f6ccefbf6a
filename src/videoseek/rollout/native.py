"""The native engine: batched multi-turn generation on the training model.

The episodes of a prompt share one encoding and one prefill, and on a GPU the keys and values of the prompt. Keys and
values stay cached across turns: a turn costs only its new tokens. All episodes of a batch go through their turns
together: within a turn, one forward pass samples one token of every running episode.

Legend: B sequences, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from videoseek.batches.order import cut_rows
from videoseek.batches.positions import mrope_positions
from videoseek.model.kv_cache import KVCache, SequenceCache, fork
from videoseek.model.load import position_rule
from videoseek.model.policy import Policy
from videoseek.rollout.clip_features import ClipFeatures
from videoseek.rollout.environment import Environment
from videoseek.rollout.sampling import episode_generator, sample_tokens
from videoseek.rollout.sequence import SequenceState, finish_group
from videoseek.timing import CLOCK
from videoseek.types import Episode, ParsedTurn, Sample, StopReason
from videoseek.video.errors import VideoError, warn_once

#: Tokens of one decoder pass, and merged tokens of one vision pass. Activations of the 7B decoder take 3.5 GiB at peak
#: (gate, up and product of 18,944 in bfloat16).
MAX_TOKENS_PER_PASS = 2**15


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """Sampling parameters, and the limits of a turn and of a batch. `temperature` 0 is greedy.

    `deadline_seconds` counts from the end of the batch's prefill: time for reading videos is excluded.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens_per_turn: int = 8192
    deadline_seconds: float = 600.0
    episodes_per_batch: int = 64


class NativeEngine:
    """Samples episodes from a policy. The policy's weights may change between two calls of `rollout`."""

    def __init__(
        self,
        policy: Policy,
        environment: Environment,
        tokens_per_second: float,
        *,
        keep_features: bool = False,
        max_tokens_per_pass: int = MAX_TOKENS_PER_PASS,
    ) -> None:
        """`keep_features` keeps `features` after a rollout, for a trainer with a frozen vision tower.

        `max_tokens_per_pass` limits the tokens of one pass. A longer sequence or clip gets a pass of its own.
        """
        self.policy = policy
        self.environment = environment
        self.tokens_per_second = tokens_per_second
        self.keep_features = keep_features
        self.max_tokens_per_pass = max_tokens_per_pass
        self.features = ClipFeatures(policy, max_tokens_per_pass)

    @torch.no_grad()
    def rollout(
        self,
        samples: Sequence[Sample],
        samples_per_prompt: int,
        seed: int,
        settings: SamplingSettings,
        *,
        weight_version: int = 0,
        on_progress: Callable[[int, int], None] | None = None,
        skip_unreadable: bool = False,
    ) -> list[list[Episode]]:
        """Returns one group of `samples_per_prompt` episodes for each of `samples`.

        `on_progress` receives the number of finished episodes and of all episodes. Raises VideoError for an unreadable
        video. `skip_unreadable` logs a warning with the video's name instead, and returns an empty group.
        """
        training = self.policy.training
        # Generation needs no gradient: evaluation mode turns gradient checkpointing off.
        self.policy.eval()
        prompts_per_batch = max(1, settings.episodes_per_batch // samples_per_prompt)
        episodes: list[list[Episode]] = []
        for first in range(0, len(samples), prompts_per_batch):
            batch = samples[first : first + prompts_per_batch]
            groups = self._start(batch, samples_per_prompt, seed, skip_unreadable)
            with CLOCK.phase("generate"):
                self._generate([group for group in groups if group], settings, skip_unreadable)
            episodes += [finish_group(group, weight_version) for group in groups]
            if not self.keep_features:
                self.features.clear()
            if on_progress is not None:
                on_progress(len(episodes) * samples_per_prompt, len(samples) * samples_per_prompt)
        self.policy.train(training)
        return episodes

    def _start(
        self, samples: Sequence[Sample], samples_per_prompt: int, seed: int, skip_unreadable: bool
    ) -> list[list[SequenceState]]:
        """Starts the sequences of each sample and encodes their prompts' clips. Returns [] for an unreadable video."""
        groups: list[list[SequenceState]] = []
        for sample in samples:
            try:
                builders = [self.environment.open(sample) for _ in range(samples_per_prompt)]
            except VideoError as error:
                if not skip_unreadable:
                    raise
                warn_once(f"passed over: {error}")
                builders = []
            # The randomness of an episode depends on seed, sample and index alone: batch size and rank have no effect,
            # and a resumed run needs no random state.
            groups.append(
                [
                    SequenceState(builder, episode_generator(seed, sample.id, index))
                    for index, builder in enumerate(builders)
                ]
            )
        # All sequences of a group show the same clip.
        prompt_clips = [clip for group in groups for sequence in group[:1] for clip in sequence.builder.clips]
        self.features.encode(prompt_clips, skip_unreadable=skip_unreadable)
        return [group if all(map(self._has_features, group)) else [] for group in groups]

    def _generate(
        self, groups: Sequence[Sequence[SequenceState]], settings: SamplingSettings, skip_unreadable: bool
    ) -> None:
        """Generates all sequences to their end. A sequence with an unreadable crop gets no stop reason."""
        if not groups:
            return
        cache, logits = self._prefill(groups)
        # The clock starts after the prefill: a slow disk must not cut answers short.
        deadline = time.monotonic() + settings.deadline_seconds
        running = [sequence for group in groups for sequence in group]
        while running:
            self._sample_turn(running, cache, logits, settings, deadline)
            with CLOCK.phase("tools"):
                parsed_turns = [sequence.end_turn() for sequence in running]
                for sequence, parsed in zip(running, parsed_turns, strict=True):
                    if sequence.builder.token_ids[-1] == self.environment.vocabulary.im_end:
                        self.environment.prefetch_calls(sequence.builder, parsed)
                for sequence, parsed in zip(running, parsed_turns, strict=True):
                    self._finish_turn(sequence, parsed, deadline)
            unfinished = [sequence for sequence in running if sequence.stop_reason is None]
            clips = [clip for sequence in unfinished for clip in sequence.pending_clips()]
            self.features.encode(clips, skip_unreadable=skip_unreadable)
            # `running` and the cache have the same order. Finished sequences leave both.
            rows = [
                row
                for row, sequence in enumerate(running)
                if sequence.stop_reason is None and self._has_features(sequence)
            ]
            running = [running[row] for row in rows]
            if running:
                logits = self._feed_observations(running, cache, rows)

    def _has_features(self, sequence: SequenceState) -> bool:
        return self.features.has_all(sequence.pending_clips())

    def _prefill(self, groups: Sequence[Sequence[SequenceState]]) -> tuple[SequenceCache, torch.Tensor]:
        """Feeds each group's prompt once. Returns a cache for all sequences and their logits [B, V]."""
        prompts = [group[0] for group in groups]
        cache = self._new_cache(len(prompts), max(len(prompt.builder.token_ids) for prompt in prompts))
        logits = self._feed_pending(prompts, cache)
        for group in groups:
            for sequence in group[1:]:
                sequence.num_cached_tokens = group[0].num_cached_tokens
                sequence.next_position = group[0].next_position
        sizes = [len(group) for group in groups]
        # On a GPU the sequences share their prompt's keys and values: copies would take 15 GiB for a 7B group of 16
        # with an overview of 17k tokens. On a CPU a copy per sequence is cheaper.
        return fork(cache, sizes), logits.repeat_interleave(torch.tensor(sizes, device=logits.device), dim=0)

    def _new_cache(self, num_sequences: int, capacity: int) -> KVCache:
        config = self.policy.model.config.text_config
        head_size = config.hidden_size // config.num_attention_heads
        shape = (num_sequences, config.num_key_value_heads, capacity, head_size)
        return KVCache.empty(
            config.num_hidden_layers, shape, self.policy.model.lm_head.weight.dtype, self.policy.device
        )

    def _sample_turn(
        self,
        sequences: Sequence[SequenceState],
        cache: SequenceCache,
        logits: torch.Tensor,
        settings: SamplingSettings,
        deadline: float,
    ) -> None:
        """Samples a turn of each sequence, up to the end-of-turn token, the token limit or the deadline."""
        banned = torch.tensor(self.environment.vocabulary.banned, device=self.policy.device)
        for _ in range(settings.max_new_tokens_per_turn):
            uniforms = None
            if settings.temperature > 0:
                # A finished sequence draws nothing: its generator stays in step with a run of the sequence alone.
                numbers = [0.0 if sequence.turn_is_over else sequence.generator.random() for sequence in sequences]
                uniforms = torch.tensor(numbers, dtype=torch.float64, device=self.policy.device)
            tokens, logprobs = sample_tokens(logits, uniforms, settings.temperature or 1.0, settings.top_p, banned)
            for sequence, token, logprob in zip(sequences, tokens.tolist(), logprobs.tolist(), strict=True):
                if not sequence.turn_is_over:
                    sequence.append(token, logprob, self.environment.max_context_tokens)
            # The last token of a turn stays pending. The next pass feeds the token with the observation.
            if all(sequence.turn_is_over for sequence in sequences) or time.monotonic() > deadline:
                return
            logits = self._feed_sampled(sequences, cache, tokens)

    def _finish_turn(self, sequence: SequenceState, parsed: ParsedTurn, deadline: float) -> None:
        """Lets the environment answer the sampled turn, or stops a truncated sequence."""
        builder = sequence.builder
        if builder.token_ids[-1] != self.environment.vocabulary.im_end:
            out_of_time = time.monotonic() > deadline
            is_full = len(builder.token_ids) >= self.environment.max_context_tokens
            limit = StopReason.CONTEXT_FULL if is_full else StopReason.TOKEN_LIMIT
            sequence.stop_reason = StopReason.DEADLINE if out_of_time else limit
            return
        sampled_ids = list(builder.token_ids)
        sequence.stop_reason = self.environment.respond(builder, parsed)
        # Keys and values of the earlier tokens are cached. An observation must not edit earlier tokens: training would
        # use tokens unseen by the model.
        if builder.token_ids[: len(sampled_ids)] != sampled_ids:
            raise RuntimeError(f"episode of {builder.sample.id!r}: an observation changed earlier tokens")

    def _feed_observations(
        self, sequences: Sequence[SequenceState], cache: SequenceCache, rows: list[int]
    ) -> torch.Tensor:
        """Keeps `rows` of the cache for `sequences`, and feeds their pending tokens. Returns logits [B, V]."""
        longest = max(len(sequence.pending_tokens()) for sequence in sequences)
        kept_rows = torch.tensor(rows, device=self.policy.device)
        cache.select(kept_rows, int(cache.lengths[kept_rows].max()) + longest)
        return self._feed_pending(sequences, cache)

    def _feed_sampled(
        self, sequences: Sequence[SequenceState], cache: SequenceCache, tokens: torch.Tensor
    ) -> torch.Tensor:
        """Feeds the last sampled tokens [B]. Returns logits [B, V].

        Finished sequences take part to keep the batch's shape, and keep their cache unchanged.
        """
        if int(cache.lengths.max()) + 1 > cache.capacity:
            cache.reserve(max(64, cache.capacity // 4))
        positions = torch.tensor([sequence.next_position for sequence in sequences], device=self.policy.device)
        grows = torch.tensor([not sequence.turn_is_over for sequence in sequences], device=self.policy.device)
        for sequence in sequences:
            if not sequence.turn_is_over:
                sequence.num_cached_tokens += 1
                sequence.next_position += 1
        no_rows = torch.zeros(0, dtype=torch.long, device=self.policy.device)
        embeddings = self.policy.embed(tokens, no_rows, self.policy.encode([]))
        return self.policy.extend(cache, embeddings[:, None], positions.expand(3, -1)[..., None], grows.long())

    def _feed_pending(self, sequences: Sequence[SequenceState], cache: SequenceCache) -> torch.Tensor:
        """Feeds the pending tokens, a few sequences at a time. Returns logits [B, V] after the last tokens."""
        # A pass pads all sequences to the longest: each counts at the longest length.
        longest = max(len(sequence.pending_tokens()) for sequence in sequences)
        logits = []
        for rows in cut_rows([longest] * len(sequences), self.max_tokens_per_pass):
            first, stop = rows[0], rows[-1] + 1
            logits.append(self._feed_pass(sequences[first:stop], cache.narrow(first, stop)))
        return torch.cat(logits)

    def _feed_pass(self, sequences: Sequence[SequenceState], cache: SequenceCache) -> torch.Tensor:
        """Feeds the pending tokens of all `sequences` in one pass, padded to the longest. Returns logits [B, V]."""
        vocabulary, device = self.environment.vocabulary, self.policy.device
        pending = [(sequence.pending_tokens(), sequence.pending_clips()) for sequence in sequences]
        longest = max(len(ids) for ids, _ in pending)
        token_ids = torch.full((len(sequences), longest), vocabulary.im_end)
        positions = torch.zeros(3, len(sequences), longest, dtype=torch.long)
        features: list[torch.Tensor] = []
        for row, (sequence, (ids, clips)) in enumerate(zip(sequences, pending, strict=True)):
            token_ids[row, : len(ids)] = torch.tensor(ids)
            positions[:, row, : len(ids)], sequence.next_position = mrope_positions(
                ids,
                clips,
                vocabulary.video_pad,
                self.tokens_per_second,
                start=sequence.next_position,
                rule=position_rule(self.policy.model.config),
            )
            sequence.num_cached_tokens += len(ids)
            features += self.features.of(clips)
        flat_ids = token_ids.flatten().to(device)
        vision_rows = (flat_ids == vocabulary.video_pad).nonzero()[:, 0]
        vision = torch.cat(features) if features else self.policy.encode([])
        embeddings = self.policy.embed(flat_ids, vision_rows, vision).view(len(sequences), longest, -1)
        num_valid = torch.tensor([len(ids) for ids, _ in pending], device=device)
        return self.policy.extend(cache, embeddings, positions.to(device), num_valid)

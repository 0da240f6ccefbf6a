"""The native sampler: continuous batching on the training model itself.

A pass of the decoder takes one token of each running turn together with the prompts and observations that have come
in. A film is fed once for all questions about it, and a prompt once for all its episodes. Keys and values stay cached
across turns: a turn costs only its new tokens.

Legend: T tokens of a pass, R sampled rows, V vocabulary.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import Future

import torch
import torch.nn.functional as F

from videoseek.batches.order import cut_rows
from videoseek.batches.positions import mrope_positions
from videoseek.model.kv_cache import CachePass, Context, CopyCache, SharedPrefixCache, new_cache
from videoseek.model.load import position_rule
from videoseek.model.policy import Policy
from videoseek.rollout.clip_features import LEAST_ROWS, ClipFeatures
from videoseek.rollout.decode_block import BLOCK_TOKENS, DecodeBlock
from videoseek.rollout.sampler import SampledTurn, TurnSettings
from videoseek.rollout.sampling import sample_tokens
from videoseek.rollout.sequence import CachedSequence, Film, Prompt
from videoseek.timing import CLOCK
from videoseek.trajectory.vocabulary import Vocabulary
from videoseek.types import Clip

#: Tokens of one decoder pass, and merged tokens of one vision pass. Activations of the 7B decoder take 3.5 GiB at peak
#: (gate, up and product of 18,944 in bfloat16).
MAX_TOKENS_PER_PASS = 2**15
#: Sequences side by side, however short they are.
MAX_SEQUENCES = 256
#: Memory for keys and values: bytes on a CPU, and the share of a GPU's unused memory. Activations take the rest.
CPU_CACHE_BYTES, GPU_CACHE_SHARE = 2**31, 0.6
#: Clips whose features wait for another episode with the same crop, unless all features are kept.
MAX_FEATURES = 64

_Item = Film | Prompt | CachedSequence


class NativeSampler:
    """A `Sampler` on a policy of this process. The decoder runs inside `work`, in the caller's thread.

    While sequences are open the policy is in evaluation mode: generation needs no gradient checkpointing.
    """

    def __init__(
        self,
        policy: Policy,
        vocabulary: Vocabulary,
        tokens_per_second: float,
        *,
        keep_features: bool = False,
        cache_tokens: int | None = None,
        max_tokens_per_pass: int = MAX_TOKENS_PER_PASS,
    ) -> None:
        """`keep_features` keeps `features` after the last sequence, for a trainer with a frozen vision tower.

        `cache_tokens` limits the keys and values: while the open sequences would fill it, each at the length of the
        longest, new ones wait (None: by the memory). Open sequences grow beyond it. `max_tokens_per_pass` limits the
        tokens of one pass; a longer film, observation or clip gets a pass of its own.
        """
        self.features = ClipFeatures(policy, max_tokens_per_pass)
        self._policy, self._vocabulary, self._tokens_per_second = policy, vocabulary, tokens_per_second
        self._keep_features, self._cache_tokens = keep_features, cache_tokens
        self._max_tokens_per_pass = max_tokens_per_pass
        self._banned = torch.tensor(vocabulary.banned, device=policy.device)
        # On a CPU the passes have shapes of equal rounding, on a GPU the kernel's choice depends on the shape.
        self.in_order = policy.device.type == "cuda"
        self._version, self._was_training = 0, False
        self._sequences: dict[str, CachedSequence] = {}
        self._films: dict[tuple[tuple[int, ...], tuple[Clip, ...]], Film] = {}
        self._observed: list[CachedSequence] = []
        self._cache: CopyCache | None = None
        self._block: DecodeBlock | None = None

    def submit(
        self, sequence_id: str, new_ids: Sequence[int], new_clips: Sequence[Clip], settings: TurnSettings
    ) -> Future[SampledTurn]:
        """See `Sampler`. Raises ValueError for sequences of different temperature or top_p side by side."""
        for other in self._sequences.values():
            if (other.settings.temperature, other.settings.top_p) != (settings.temperature, settings.top_p):
                raise ValueError(f"sequences side by side need equal temperature and top_p, got {settings}")
            break
        sequence = self._sequences.get(sequence_id)
        if sequence is None:
            sequence = self._open(tuple(new_ids), tuple(new_clips), settings)
            self._sequences[sequence_id] = sequence
        else:
            sequence.ids += new_ids
            sequence.clips = new_clips
            self._observed.append(sequence)
        return sequence.begin_turn(settings)

    def _open(self, ids: tuple[int, ...], clips: tuple[Clip, ...], settings: TurnSettings) -> CachedSequence:
        if not self._sequences:
            self._was_training = self._policy.training
            self._policy.eval()
        # The film ends with the last token of a clip. A prompt always goes on behind it.
        cut = len(ids) - ids[::-1].index(self._vocabulary.video_pad) if clips else 1
        film = self._films.setdefault((ids[:cut], clips), Film(ids[:cut], clips))
        prompt = film.prompts.setdefault(ids[cut:], Prompt(film, ids[cut:]))
        sequence = CachedSequence(prompt, settings)
        film.queue.append(sequence)
        return sequence

    @torch.inference_mode()
    def forget(self, sequence_id: str) -> None:
        """See `Sampler`. The last sequence takes the cache with it, and the policy returns to its mode."""
        sequence = self._sequences.pop(sequence_id, None)
        if sequence is None:
            return
        for place in (sequence.prompt.film.queue, sequence.prompt.waiting, self._observed):
            if sequence in place:
                place.remove(sequence)
        sequence.future.cancel()
        if not self._sequences:
            self._films.clear()
            self._cache = self._block = None
            self._policy.train(self._was_training)
            if not self._keep_features:
                self.features.clear()
        elif sequence.slot is not None and self._cache is not None:
            self._cache.close(sequence.slot)

    def load(self, weights: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """See `Sampler`. Raises RuntimeError while sequences are open."""
        if self._sequences:
            raise RuntimeError(f"weights cannot change while {len(self._sequences)} sequences are open")
        named = dict(weights)
        if named:
            self._policy.model.load_state_dict(named, strict=False)
        self._version = version

    def close(self) -> None:
        """See `Sampler`."""
        for sequence_id in list(self._sequences):
            self.forget(sequence_id)
        self.features.clear()

    @torch.inference_mode()
    def work(self) -> bool:
        """See `Sampler`: one pass of the decoder, and with shared films a block of tokens of all running turns."""
        with CLOCK.phase("generate"):
            self._admit()
            cache = self._cache
            if cache is None:
                return False
            items = self._encode(self._next_items())
            # A step over all slots has a constant shape for a CUDA graph: it stays apart from other tokens.
            rows = [] if cache.is_shared else [slot.owner for slot in cache.rows()]
            logits = [self._feed(cache, rows, items)] if rows or items else []
            sampled = rows + [item for item in items if isinstance(item, CachedSequence)]
            opened = self._fill_slots(cache)
            logits += [s.prompt.logits[None] for s in opened if s.prompt.logits is not None]
            if sampled or opened:
                self._sample(cache, sampled + opened, torch.cat(logits))
            has_decoded = isinstance(cache, SharedPrefixCache) and self._decode_block(cache)
            return bool(rows or items or opened) or has_decoded

    def _admit(self) -> None:
        """Gives queued sequences room in the cache, film by film."""
        films = [film for film in self._films.values() if film.queue]
        if not films:
            return
        if self._cache is None:
            self._cache = self._new_cache(max(len(film.queue) for film in films))
        cache = self._cache
        admitted = [s for s in self._sequences.values() if s.slot is not None or s in s.prompt.waiting]
        longest = max([cache.capacity, *(s.num_reserved(cache.is_shared) for s in admitted if s.slot is None)])
        count, members = len(admitted), Counter(s.prompt.film for s in admitted)
        used = 0
        for film in films:
            while film.queue:
                sequence = film.queue[0]
                members[film] += 1
                count, longest = count + 1, max(longest, sequence.num_reserved(cache.is_shared))
                needed = cache.num_reserved([(len(shown.ids), number) for shown, number in members.items()], longest)
                # A sequence that needs no more than those before it takes a free place in its film's lane.
                if count > 1 and (count > MAX_SEQUENCES or needed > max(used, self._budget)):
                    return
                used = needed
                sequence.prompt.waiting.append(film.queue.pop(0))

    def _new_cache(self, group_size: int) -> CopyCache:
        config, device = self._policy.model.config.text_config, self._policy.device
        head_size = config.hidden_size // config.num_attention_heads
        shape = (config.num_hidden_layers, config.num_key_value_heads, head_size)
        dtype = self._policy.model.lm_head.weight.dtype
        num_bytes = CPU_CACHE_BYTES
        if device.type == "cuda":
            unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
            num_bytes = int(GPU_CACHE_SHARE * (torch.cuda.mem_get_info(device)[0] + unused))
        self._budget = self._cache_tokens or num_bytes // (2 * math.prod(shape) * dtype.itemsize)
        return new_cache(shape, dtype, device, group_size)

    def _next_items(self) -> list[_Item]:
        """Returns the observations, films and prompts of the next pass."""
        items: list[_Item] = list(self._observed)
        for film in self._films.values():
            waiting = film.waiting()
            if film.tokens is not None:
                items += [prompt for prompt in waiting if prompt.tokens is None]
            elif waiting:
                items.append(film)
        cuts = cut_rows([len(item.ids) for item in items], self._max_tokens_per_pass)
        items = [items[index] for index in cuts[0]] if cuts else []
        self._observed = [sequence for sequence in self._observed if sequence not in items]
        return items

    def _encode(self, items: list[_Item]) -> list[_Item]:
        """Encodes the clips of the items. Returns the items that can be read; the futures of the others fail."""
        if not self._keep_features and len(self.features) > MAX_FEATURES:
            self.features.clear()
        # A trainer with a frozen vision tower takes the features over: autograd refuses inference tensors.
        with torch.inference_mode(False), torch.no_grad():
            errors = self.features.encode_readable(clip for item in items for clip in item.clips)
        for item in items if errors else []:
            error = next((errors[clip] for clip in item.clips if clip in errors), None)
            failed = [item] if isinstance(item, CachedSequence) else []
            if error is not None and isinstance(item, Film):
                del self._films[tuple(item.ids), tuple(item.clips)]
                failed = item.queue + [sequence for prompt in item.waiting() for sequence in prompt.waiting]
            for sequence in failed if error is not None else []:
                sequence.future.set_exception(error)
        return [item for item in items if errors.keys().isdisjoint(item.clips)]

    def _feed(self, cache: CopyCache, rows: Sequence[CachedSequence], items: Sequence[_Item]) -> torch.Tensor:
        """Feeds the unfed token of each of `rows` and the tokens of the items, and caches them all.

        Returns the logits of the last tokens of `rows` and of the sequences among the items.
        """
        started = time.perf_counter()
        token_ids = [sequence.ids[0] for sequence in rows]
        positions = [torch.tensor([sequence.next_position for sequence in rows], dtype=torch.long).expand(3, -1)]
        ends: list[int] = [len(rows)]
        contexts: list[Context | None] = []
        for item in items:
            start = item.film.next_position if isinstance(item, Prompt) else item.next_position
            block, item.next_position = mrope_positions(
                item.ids,
                item.clips,
                self._vocabulary.video_pad,
                self._tokens_per_second,
                start=start,
                rule=position_rule(self._policy.model.config),
            )
            own = cache.context(item.slot) if isinstance(item, CachedSequence) and item.slot else None
            contexts.append(item.film.tokens if isinstance(item, Prompt) else own)
            token_ids += item.ids
            positions.append(block)
            ends.append(len(token_ids))
        lengths = [len(item.ids) for item in items]
        attention = CachePass(cache, len(rows), list(zip(lengths, contexts, strict=True)))
        clips = [clip for item in items for clip in item.clips]
        hidden = self._decode(token_ids, torch.cat(positions, dim=1), clips, attention)
        lasts = [*range(len(rows)), *(end - 1 for end in ends[1:])]
        logits = self._policy.project(hidden[lasts + [0] * (LEAST_ROWS - len(lasts))])
        seconds = (time.perf_counter() - started) / len(token_ids)
        for sequence in rows:
            sequence.step(seconds)
        kept = list(range(len(rows)))
        for row, (item, start, end) in enumerate(zip(items, ends, ends[1:], strict=False), len(rows)):
            tokens = attention.taken(start, end)
            if isinstance(item, CachedSequence) and item.slot is not None:
                cache.append(item.slot, tokens)
                cache.set_active(item.slot, True)
                item.seconds += seconds * (end - start)
                kept.append(row)
            elif not isinstance(item, CachedSequence):
                item.tokens = tokens
            if isinstance(item, Prompt):
                item.logits = logits[row]
        return logits[kept]

    def _decode(
        self, token_ids: list[int], positions: torch.Tensor, clips: list[Clip], attention: CachePass
    ) -> torch.Tensor:
        """Returns the final hidden states [T, C] of tokens at positions [3, T], with at least `LEAST_ROWS` rows."""
        num_missing = max(0, LEAST_ROWS - len(token_ids))
        padded = token_ids + [self._vocabulary.im_end] * num_missing
        ids = torch.tensor(padded, device=self._policy.device)
        vision_rows = features = None
        if clips:
            vision_rows = (ids == self._vocabulary.video_pad).nonzero()[:, 0]
            features = torch.cat(self.features.of(clips))
        embeddings = self._policy.embed(ids, vision_rows, features)
        positions = F.pad(positions, (0, num_missing)).to(ids.device)
        return self._policy.decode(embeddings[None], positions[:, None], attention)[0]

    def _fill_slots(self, cache: CopyCache) -> list[CachedSequence]:
        """Opens a slot for every admitted sequence whose prompt has been fed. Returns the sequences."""
        opened: list[CachedSequence] = []
        for key, film in list(self._films.items()):
            for prompt in film.waiting():
                if film.tokens is None or prompt.tokens is None:
                    continue
                for sequence in prompt.waiting:
                    sequence.slot = cache.open(sequence, film.tokens, prompt.tokens)
                    sequence.next_position = prompt.next_position
                    cache.set_active(sequence.slot, True)
                opened += prompt.waiting
                prompt.waiting = []
            if not film.queue and not film.waiting():
                del self._films[key]
                film.tokens = None  # the cache holds a copy, and open sequences still refer to the film
                for prompt in film.prompts.values():
                    prompt.tokens = None
        return opened

    def _sample(self, cache: CopyCache, sequences: Sequence[CachedSequence], logits: torch.Tensor) -> None:
        """Samples a token of each sequence from its logits [R, V]."""
        settings = sequences[0].settings
        uniforms = None
        if settings.temperature > 0:
            numbers = [sequence.uniforms[len(sequence.token_ids)] for sequence in sequences]
            uniforms = torch.tensor(numbers, dtype=torch.float64, device=logits.device)
        tokens, logprobs = sample_tokens(logits, uniforms, settings.temperature or 1.0, settings.top_p, self._banned)
        for sequence, token, logprob in zip(sequences, tokens.tolist(), logprobs.tolist(), strict=True):
            self._append(cache, sequence, token, logprob)

    def _append(self, cache: CopyCache, sequence: CachedSequence, token: int, logprob: float) -> None:
        stop = sequence.append(token, logprob, self._vocabulary.im_end)
        if stop is not None and sequence.slot is not None:
            cache.set_active(sequence.slot, False)
            versions = [self._version] * len(sequence.token_ids)
            turn = SampledTurn(sequence.token_ids, sequence.logprobs, versions, stop, sequence.seconds)
            sequence.future.set_result(turn)

    def _decode_block(self, cache: SharedPrefixCache) -> bool:
        """Samples a block of tokens of each running turn. Returns False without a running turn."""
        running = [slot for slot in cache.slots if slot.is_active]
        if not running:
            return False
        started = time.perf_counter()
        cache.reserve(cache.num_slots, max(slot.length for slot in cache.slots) + BLOCK_TOKENS + 1)
        if self._block is None or self._block.shapes != cache.shapes():
            settings = running[0].owner.settings
            self._block = DecodeBlock(self._policy, cache, self._banned, self._vocabulary.im_end, settings)
        tokens, logprobs = self._block.run(running)
        seconds = (time.perf_counter() - started) / (BLOCK_TOKENS * len(running))
        for slot in running:
            sequence = slot.owner
            for token, logprob in zip(tokens[slot.index], logprobs[slot.index], strict=True):
                if slot.is_active:
                    sequence.step(seconds)
                    self._append(cache, sequence, token, logprob)
        return True

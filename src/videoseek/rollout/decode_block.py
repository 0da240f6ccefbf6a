"""DecodeBlock: a block of tokens of all running turns, sampled on the device without a word to the host.

Legend: N slots, K tokens of a block, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from videoseek.model.kv_cache import SharedPrefixCache, Slot
from videoseek.model.policy import Policy
from videoseek.rollout.sampler import TurnSettings
from videoseek.rollout.sampling import sample_tokens

#: The host reads tokens after a block: a turn that ends inside a block idles to the block's end.
BLOCK_TOKENS = 16


class DecodeBlock:
    """Decodes and samples with tensors of constant shape and place: on a GPU a step is recorded as a CUDA graph.

    Serves one cache until the cache grows. A row that has ended, or has no sequence, keeps its length: what the row
    computes is overwritten or dropped.
    """

    def __init__(
        self, policy: Policy, cache: SharedPrefixCache, banned: torch.Tensor, end_id: int, settings: TurnSettings
    ) -> None:
        self._policy, self._cache, self._banned, self._end_id = policy, cache, banned, end_id
        self._temperature, self._top_p = settings.temperature, settings.top_p
        #: A growth of the cache moves its tensors: the block must be made anew.
        self.shapes = cache.shapes()
        size = (cache.num_slots,)
        # The last place of a slot is free: a step on it, before the first `run`, harms no sequence.
        self._lengths = torch.full(size, cache.capacity - 1, dtype=torch.int32, device=cache.device)
        self._ids, self._positions, self._left = (torch.zeros_like(self._lengths, dtype=torch.long) for _ in range(3))
        self._buffers = (self._lengths, self._ids, self._positions, self._left)
        self._step_number = torch.zeros(1, dtype=torch.long, device=cache.device)
        self._uniforms = torch.zeros(BLOCK_TOKENS, *size, dtype=torch.float64, device=cache.device)
        self._tokens = torch.zeros(BLOCK_TOKENS, *size, dtype=torch.long, device=cache.device)
        self._logprobs = torch.zeros(BLOCK_TOKENS, *size, device=cache.device)
        self._graph = self._record() if cache.device.type == "cuda" else None

    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """See `DecoderAttention`."""
        return self._cache.step(layer, query, key, value).transpose(1, 2)

    def run(self, running: Sequence[Slot]) -> tuple[list[list[int]], list[list[float]]]:
        """Samples up to `BLOCK_TOKENS` tokens of each running slot. Returns tokens and log-probs [N][K].

        What follows the end of a turn in its row has no meaning.
        """
        lengths = [slot.length for slot in self._cache.slots]
        ids, positions, left = ([0] * len(lengths) for _ in range(3))
        uniforms = np.zeros((BLOCK_TOKENS, len(lengths)))
        for sequence, index in ((slot.owner, slot.index) for slot in running):
            ids[index], positions[index] = sequence.ids[0], sequence.next_position
            num_sampled = len(sequence.token_ids)
            left[index] = sequence.settings.max_new_tokens - num_sampled
            drawn = sequence.uniforms[num_sampled : num_sampled + BLOCK_TOKENS]
            uniforms[: len(drawn), index] = drawn
        for buffer, values in zip(self._buffers, (lengths, ids, positions, left), strict=True):
            buffer.copy_(torch.tensor(values))
        self._uniforms.copy_(torch.from_numpy(uniforms))
        self._step_number.zero_()
        for _ in range(min(BLOCK_TOKENS, max(left))):
            self._graph.replay() if self._graph is not None else self._step()
        return self._tokens.T.tolist(), self._logprobs.T.tolist()

    def _step(self) -> None:
        """Feeds the last token of every row and samples the next one. Reads and writes the buffers in place."""
        self._cache.begin_at(self._lengths)
        hidden = self._policy.decode(self._policy.embed(self._ids)[None], self._positions.expand(3, 1, -1), self)[0]
        uniforms = self._uniforms.index_select(0, self._step_number)[0] if self._temperature > 0 else None
        tokens, logprobs = sample_tokens(
            self._policy.project(hidden), uniforms, self._temperature or 1.0, self._top_p, self._banned
        )
        self._tokens.index_copy_(0, self._step_number, tokens[None])
        self._logprobs.index_copy_(0, self._step_number, logprobs[None])
        runs = self._left > 0
        self._lengths += runs
        self._positions += runs
        self._ids.copy_(tokens)
        self._left.copy_((self._left - 1) * (tokens != self._end_id))
        self._step_number += 1

    def _record(self) -> torch.cuda.CUDAGraph:
        """Returns the graph of a step. Launching its kernels one by one takes longer than running them."""
        stream, current = torch.cuda.Stream(self._cache.device), torch.cuda.current_stream(self._cache.device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            self._step()  # compiles the kernels, which a recording must not do
        current.wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._step()
        return graph

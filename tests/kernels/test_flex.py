"""The mask on FlexAttention: eagerly on the CPU, where it has no backward, and the block lists for a GPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kernel_bench.testing import pack, random_inputs, random_mask, trajectory_mask
from torch.nn.attention.flex_attention import create_mask
from videoseek_kernels import TokenMask, build_block_mask, tdam_attention
from videoseek_kernels.impl.flex import flex_mask


def drawn_mask(seed: int) -> TokenMask:
    rng = np.random.default_rng(seed)
    return pack(random_mask(rng, int(rng.integers(1, 90))) for _ in range(int(rng.integers(1, 4))))


def check(seed: int) -> None:
    mask = drawn_mask(seed)
    heads = ((1, 1), (2, 1), (7, 1))[seed % 3]
    q, k, v, _ = (x.detach() for x in random_inputs(len(mask), heads, 32, torch.float64, seed=seed))
    block_mask = build_block_mask(mask, 32, 16)
    found = [tdam_attention(q, k, v, block_mask, impl=impl, return_lse=True) for impl in ("reference", "flex")]
    sighted = mask.dense().any(1)
    for ours, wanted in zip(*found, strict=True):
        torch.testing.assert_close(ours[sighted], wanted[sighted].to(ours.dtype), rtol=0, atol=1e-12)
    assert not found[1][0][~sighted].any()


@pytest.mark.parametrize("seed", range(20))
def test_reference_and_flex_attention_agree(seed: int) -> None:
    check(seed)


@pytest.mark.thorough
@pytest.mark.timeout(1800)
def test_reference_and_flex_attention_agree_on_2000_masks() -> None:
    for seed in range(100, 2100):
        check(seed)


@pytest.mark.parametrize("num_tokens", [1, 128, 300])
def test_lists_of_flex_attention_cover_the_mask(num_tokens: int) -> None:
    mask = trajectory_mask(num_tokens, 3) if num_tokens > 1 else TokenMask.documents([1])
    block_mask = build_block_mask(mask, 32, 32)
    theirs = flex_mask(block_mask)
    seen = create_mask(theirs.mask_mod, None, None, num_tokens, num_tokens, device="cpu")[0, 0]
    assert torch.equal(seen, mask.dense())
    blocks = theirs.to_dense()[0, 0].bool()
    padded = torch.zeros(len(blocks) * 32, blocks.shape[1] * 32, dtype=torch.bool)
    padded[:num_tokens, :num_tokens] = seen
    occupied = padded.view(len(blocks), 32, -1, 32).any(3).any(1)
    assert bool((blocks | ~occupied).all())
    assert int(blocks.sum()) == int(block_mask.by_query.offsets[-1])

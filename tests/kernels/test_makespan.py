"""The order of the grid fills a GPU, by a model of its scheduler on the shipped tiles and the 7B shape."""

from __future__ import annotations

import pytest
import torch
from kernel_bench.makespan import makespan
from kernel_bench.testing import trajectory_mask
from videoseek_kernels import TokenMask, build_block_mask
from videoseek_kernels.tree import group, tree_end

HEADS = (28, 4)


def masks(num_tokens: int) -> dict[str, TokenMask]:
    part, prompt = num_tokens // 8, num_tokens // 2
    return {
        "causal": TokenMask.documents([num_tokens]),
        "packed 1:1:2:4": TokenMask.documents([part, part, 2 * part, 4 * part]),
        "turns": trajectory_mask(num_tokens, 4),
        "group of 8": plain(tree_end(*group(prompt, [(num_tokens - prompt) // 8] * 8))),
    }


def plain(end: torch.Tensor) -> TokenMask:
    return TokenMask(end, torch.ones_like(end), torch.full_like(end, -1))


@pytest.mark.parametrize("name", masks(1024))
@pytest.mark.parametrize("stage", ["forward", "dq", "dkdv"])
def test_programs_fill_the_gpu_at_16k(stage: str, name: str) -> None:
    block_mask = build_block_mask(masks(16384)[name])
    assert makespan(stage, block_mask, HEADS) <= 1.05


def test_the_model_sees_an_order_that_starts_each_head_with_its_longest_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    block_mask = build_block_mask(masks(16384)["packed 1:1:2:4"])
    num_tiles = 16384 // 128

    class HeadsOutside:
        @staticmethod
        def fn(i_program: int, num_splits: int, num_heads: int) -> tuple[int, int, int]:
            return i_program % num_tiles, i_program // num_tiles, 0

    monkeypatch.setattr("kernel_bench.makespan.key_program", HeadsOutside)
    assert makespan("dkdv", block_mask, HEADS) > 1.15


def test_one_long_program_bounds_the_ideal() -> None:
    assert makespan("dkdv", build_block_mask(TokenMask.documents([64])), (1, 1)) == 1.0

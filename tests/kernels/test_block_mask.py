"""Masks and block lists, against the dense mask."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from kernel_bench.testing import random_mask, trajectory_mask
from videoseek_kernels import TokenMask, build_block_mask
from videoseek_kernels.block_mask import BlockLists, BlockMask, build_with_numpy, build_with_torch

NUM_MASKS = 2000


def tensors(built: BlockMask) -> list[torch.Tensor]:
    return [built.key_word, *built.by_query.tensors, *built.by_key.tensors]


def listed(lists: BlockLists) -> tuple[dict[tuple[int, int], bool], list[int]]:
    """(block, tile) -> FULL, and the list lengths."""
    found, lengths = {}, []
    offsets = lists.offsets.tolist()
    for block, (first, last) in enumerate(zip(offsets[:-1], offsets[1:], strict=True)):
        tiles, num_full = lists.indices[first:last].tolist(), int(lists.num_full[block])
        assert tiles[:num_full] == sorted(tiles[:num_full]) and tiles[num_full:] == sorted(tiles[num_full:])
        found |= {(block, tile): rank < num_full for rank, tile in enumerate(tiles)}
        lengths.append(last - first)
    return found, lengths


def dense_tiles(mask: TokenMask, block_m: int, block_n: int) -> torch.Tensor:
    """[rows of blocks, columns of blocks, block_m * block_n]; beyond the last token nothing is visible."""
    seen, size = mask.dense(), len(mask)
    padded = torch.nn.functional.pad(seen, (0, -size % block_n, 0, -size % block_m))
    shape = (padded.shape[0] // block_m, block_m, padded.shape[1] // block_n, block_n)
    return padded.view(shape).permute(0, 2, 1, 3).flatten(2)


def check_against_dense(mask: TokenMask, built: BlockMask) -> int:
    """Returns how many tiles were looked at; raises at the first that is misfiled."""
    tiles = dense_tiles(mask, built.block_m, built.block_n)
    by_query, query_lengths = listed(built.by_query)
    by_key, key_lengths = listed(built.by_key)
    assert {(j, i): full for (i, j), full in by_query.items()} == by_key
    rows_left = len(mask) - torch.arange(tiles.shape[0]) * built.block_m
    for i in range(tiles.shape[0]):
        real = min(built.block_m, int(rows_left[i])) * built.block_n
        for j in range(tiles.shape[1]):
            num_visible = int(tiles[i, j].sum())
            assert num_visible == 0 or (i, j) in by_query, f"tile {i, j} holds {num_visible} pairs but is not listed"
            assert not by_query.get((i, j)) or num_visible == real, f"full tile {i, j} holds {num_visible}"
    for lists, lengths in ((built.by_query, query_lengths), (built.by_key, key_lengths)):
        assert lists.order.tolist() == sorted(range(len(lengths)), key=lambda block: (-lengths[block], block))
    return tiles.shape[0] * tiles.shape[1]


def test_fuzz_both_builders_agree_and_misfile_nothing() -> None:
    rng = np.random.default_rng(20260)
    looked_at = 0
    for case in range(NUM_MASKS):
        num_tokens = int(rng.choice([1, 15, 16, 17, 33, 47, 63, 65]))
        mask = random_mask(rng, num_tokens)
        block_m, block_n = (int(rng.choice([16, 32])) for _ in range(2))
        built = build_with_numpy(mask, block_m, block_n)
        twin = build_with_torch(mask, block_m, block_n)
        same = [torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(tensors(built), tensors(twin), strict=True)]
        assert all(same), f"case {case}: builders differ in tensors {[i for i, ok in enumerate(same) if not ok]}"
        looked_at += check_against_dense(mask, built)
    assert looked_at > 2 * NUM_MASKS


def test_builders_agree_at_the_shipped_block_size() -> None:
    mask = trajectory_mask(4000, 3)
    a, b = build_with_numpy(mask, 128, 128), build_with_torch(mask, 128, 128)
    assert all(torch.equal(x, y) for x, y in zip(tensors(a), tensors(b), strict=True))
    check_against_dense(mask, a)


def test_causal_block_mask_is_the_triangle() -> None:
    built = build_block_mask(TokenMask.documents([64]), 16, 16)
    found, _ = listed(built.by_query)
    assert found == {(i, j): j < i for i in range(4) for j in range(i + 1)}
    assert built.by_query.order.tolist() == [3, 2, 1, 0]
    assert built.by_key.order.tolist() == [0, 1, 2, 3]


def test_a_ragged_key_block_is_never_full() -> None:
    # Row 16 is alone in its block and sees all 17 keys; the key block of key 16 is padded with nothing.
    built = build_block_mask(TokenMask.documents([17]), 16, 32)
    assert int(built.by_query.num_full.sum()) == 0


def test_hidden_classes_empty_whole_tiles() -> None:
    key_class = torch.tensor([2] * 16 + [1] * 16, dtype=torch.int32)
    visible = torch.tensor([-1] * 16 + [1] * 16, dtype=torch.int32)
    found, _ = listed(
        build_block_mask(TokenMask(torch.full((32,), 32, dtype=torch.int32), key_class, visible), 16, 16).by_query
    )
    assert set(found) == {(0, 0), (1, 1)}


def test_block_mask_for_64k_tokens_is_small_and_quick() -> None:
    mask = trajectory_mask(65536, 10)
    seconds = []
    for _ in range(3):
        start = time.process_time()  # not the time of others on this machine
        built = build_block_mask(mask)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.05
    assert built.num_bytes < 2_000_000


def test_block_mask_moves_between_devices() -> None:
    built = build_block_mask(TokenMask.documents([5, 40]))
    moved = built.to("cpu")
    assert moved.host_mask is built.host_mask and len(moved) == 45
    assert all(torch.equal(a, b) for a, b in zip(tensors(built), tensors(moved), strict=True))


@pytest.mark.parametrize(
    ("end", "key_class", "visible", "message"),
    [
        ([0.5], [1], [1], "int32"),
        ([1], [1, 1], [1], "2 tokens"),
        ([], [], [], "1 to"),
        ([3], [1], [1], r"\[0, 1\]"),
        ([1], [3], [1], "0x3"),
        ([1], [-(2**31)], [1], "bits 0 to 30"),
    ],
    ids=["float", "length", "none", "end", "two-bits", "sign-bit"],
)
def test_bad_masks_are_named(end: list, key_class: list, visible: list, message: str) -> None:
    parts = [torch.tensor(x, dtype=torch.float32 if 0.5 in x else torch.int32) for x in (end, key_class, visible)]
    with pytest.raises(ValueError, match=message):
        TokenMask(*parts)


def test_a_strided_mask_is_refused() -> None:
    """The kernels read it by address; a column of a table would be read as its neighbours."""
    column = torch.ones(4, 2, dtype=torch.int32)[:, 0]
    with pytest.raises(ValueError, match=r"visible must be int32 \[T\], contiguous"):
        TokenMask(torch.full((4,), 4, dtype=torch.int32), torch.ones(4, dtype=torch.int32), column)


@pytest.mark.parametrize("block", [0, 8, 48])
def test_bad_block_sizes_are_named(block: int) -> None:
    with pytest.raises(ValueError, match=f"power of two of at least 16, got {block}"):
        build_block_mask(TokenMask.documents([4]), block_m=block)

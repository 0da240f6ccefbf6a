"""Tree layout: a packed group computes what its separate sequences compute, gradients summed."""

from __future__ import annotations

import pytest
import torch
from videoseek_kernels import TokenMask, tdam_attention
from videoseek_kernels.testing import ALL, CROP_VIDEO, GLOBAL_VIDEO, TEXT
from videoseek_kernels.tree import group, path_rows, predicting_rows, tree_end, tree_positions

# A prompt with three rollouts, the second of which branches again.
LENGTHS = [9, 5, 1, 4, 6, 7]
PARENTS = [-1, 0, 0, 2, 2, 0]


def test_layout_by_hand() -> None:
    lengths, parents = group(3, [2, 1])
    assert tree_end(lengths, parents).tolist() == [6, 6, 6, 5, 5, 6]
    assert predicting_rows(lengths, parents).tolist() == [-1, 0, 1, 2, 3, 2]
    assert tree_positions(lengths, parents).tolist() == [0, 1, 2, 3, 4, 3]
    assert path_rows(lengths, parents, 2).tolist() == [0, 1, 2, 5]


def test_packing_is_a_forest_of_roots() -> None:
    assert torch.equal(tree_end([3, 1, 4], [-1, -1, -1]), TokenMask.documents([3, 1, 4]).end)


def test_nested_subtrees_reach_their_last_leaf() -> None:
    assert tree_end([1, 1, 1, 1], [-1, 0, 1, 0]).tolist() == [4, 3, 3, 4]


@pytest.mark.parametrize(
    ("lengths", "parents"), [([], []), ([1, 0], [-1, 0]), ([1, 1], [-1]), ([1, 1, 1, 1], [-1, 0, 0, 1])]
)
def test_bad_trees_are_refused(lengths: list[int], parents: list[int]) -> None:
    with pytest.raises(ValueError, match="wanted"):
        tree_end(lengths, parents)


@pytest.mark.parametrize("impl", ["reference", "composition"])
def test_group_equals_separate_sequences(impl: str) -> None:
    generator = torch.Generator().manual_seed(3)
    num_tokens = sum(LENGTHS)
    q, k, v, upstream = (
        torch.randn(num_tokens, heads, 16, generator=generator, dtype=torch.float64) for heads in (4, 2, 2, 4)
    )
    key_class = torch.tensor([TEXT, GLOBAL_VIDEO, CROP_VIDEO], dtype=torch.int32)[torch.arange(num_tokens) % 3]
    rows = torch.tensor([ALL, ALL, ALL & ~CROP_VIDEO, ALL & ~GLOBAL_VIDEO], dtype=torch.int32)
    visible = rows[torch.arange(num_tokens) // 2 % 4]
    inputs = [x.requires_grad_() for x in (q, k, v)]

    packed = tdam_attention(q, k, v, TokenMask(tree_end(LENGTHS, PARENTS), key_class, visible), impl=impl)
    leaves = [node for node in range(len(LENGTHS)) if node not in PARENTS]
    separate = torch.zeros_like(packed)
    loss = torch.zeros((), dtype=torch.float64)
    filled = torch.zeros(num_tokens, dtype=torch.bool)
    for leaf in leaves:
        path = path_rows(LENGTHS, PARENTS, leaf)
        end = torch.full((len(path),), len(path), dtype=torch.int32)
        out = tdam_attention(q[path], k[path], v[path], TokenMask(end, key_class[path], visible[path]), impl=impl)
        new = ~filled[path]
        filled[path] = True
        separate = separate.index_copy(0, path, out.detach())
        loss = loss + (out * upstream[path])[new].sum()

    torch.testing.assert_close(packed, separate, rtol=0, atol=1e-12)
    grads = torch.autograd.grad((packed * upstream).sum(), inputs)
    for got, wanted in zip(grads, torch.autograd.grad(loss, inputs), strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)

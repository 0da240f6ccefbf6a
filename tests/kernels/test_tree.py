"""Tree layout: a packed group computes what its separate sequences compute, gradients summed."""

from __future__ import annotations

import pytest
import torch
from kernel_bench.testing import ALL, CROP_VIDEO, GLOBAL_VIDEO, TEXT
from videoseek_kernels import TokenMask, tdam_attention
from videoseek_kernels.dense import find_segments, segmented_attention
from videoseek_kernels.tree import group, tree_end

# A prompt with three rollouts, the second of which branches again.
LENGTHS = [9, 5, 1, 4, 6, 7]
PARENTS = [-1, 0, 0, 2, 2, 0]


def test_layout_equals_a_hand_computed_tree() -> None:
    lengths, parents = group(3, [2, 1])
    assert tree_end(lengths, parents).tolist() == [6, 6, 6, 5, 5, 6]


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


def path_rows(leaf: int) -> torch.Tensor:
    """Rows of the sequence that ends with node `leaf`, root first."""
    starts = [sum(LENGTHS[:node]) for node in range(len(LENGTHS))]
    parts: list[torch.Tensor] = []
    node = leaf
    while node >= 0:
        parts.insert(0, torch.arange(starts[node], starts[node] + LENGTHS[node]))
        node = PARENTS[node]
    return torch.cat(parts)


def attend(impl: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: TokenMask) -> torch.Tensor:
    if impl == "segments":
        return segmented_attention(q, k, v, find_segments(mask))
    return tdam_attention(q, k, v, mask, impl=impl)


@pytest.mark.parametrize("impl", ["reference", "dense", "segments"])
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

    packed = attend(impl, q, k, v, TokenMask(tree_end(LENGTHS, PARENTS), key_class, visible))
    leaves = [node for node in range(len(LENGTHS)) if node not in PARENTS]
    separate = torch.zeros_like(packed)
    loss = torch.zeros((), dtype=torch.float64)
    filled = torch.zeros(num_tokens, dtype=torch.bool)
    for leaf in leaves:
        path = path_rows(leaf)
        end = torch.full((len(path),), len(path), dtype=torch.int32)
        out = attend(impl, q[path], k[path], v[path], TokenMask(end, key_class[path], visible[path]))
        new = ~filled[path]
        filled[path] = True
        separate = separate.index_copy(0, path, out.detach())
        loss = loss + (out * upstream[path])[new].sum()

    torch.testing.assert_close(packed, separate, rtol=0, atol=1e-12)
    grads = torch.autograd.grad((packed * upstream).sum(), inputs)
    for got, wanted in zip(grads, torch.autograd.grad(loss, inputs), strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)

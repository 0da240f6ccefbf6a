"""Trees of token nodes in a packed row: a shared prefix is held and computed once, and the branches follow.

A forest is given depth first: node i has `lengths[i]` tokens and the parent `parents[i] < i`, or -1 for a root.
Packing is a forest of roots; a GRPO group is a root with branches. Only `end` of the mask depends on the tree.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def group(prefix_length: int, branch_lengths: Sequence[int]) -> tuple[list[int], list[int]]:
    """Returns (lengths, parents) of a prompt with rollouts as branches."""
    return [prefix_length, *branch_lengths], [-1] + [0] * len(branch_lengths)


def tree_end(lengths: Sequence[int], parents: Sequence[int]) -> torch.Tensor:
    """Returns int32 [T]: for each token, the end of the subtree of the token's node.

    Raises ValueError for an empty forest or another order than depth first.
    """
    _check(lengths, parents)
    stops = _stops(lengths)
    reach = list(stops)
    for node in range(len(lengths) - 1, -1, -1):
        if parents[node] >= 0:
            reach[parents[node]] = max(reach[parents[node]], reach[node])
    return torch.tensor(reach, dtype=torch.int32).repeat_interleave(torch.tensor(lengths))


def _stops(lengths: Sequence[int]) -> list[int]:
    return torch.tensor(lengths).cumsum(0).tolist()


def _check(lengths: Sequence[int], parents: Sequence[int]) -> None:
    if len(lengths) != len(parents) or not lengths or min(lengths) < 1:
        raise ValueError(f"wanted one parent per node and lengths of at least 1, got {list(lengths)}, {list(parents)}")
    path: list[int] = []
    for node, parent in enumerate(parents):
        while path and path[-1] != parent:
            path.pop()
        if parent >= 0 and not path:
            raise ValueError(
                f"node {node} has parent {parent}, which is not on the path to node {node - 1}: wanted depth first"
            )
        path.append(node)

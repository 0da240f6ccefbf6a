"""Trees of token nodes in one packed row: a shared prefix is held and computed once, its branches follow it.

A forest is given depth first: `lengths[i]` tokens of node i, whose parent is `parents[i] < i`, or -1 for a root.
Packing is a forest of roots; a GRPO group is one root with branches. The mask needs `end` alone; positions continue
along each path.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def group(prefix_length: int, branch_lengths: Sequence[int]) -> tuple[list[int], list[int]]:
    """(lengths, parents) of one prompt and the rollouts that continue it."""
    return [prefix_length, *branch_lengths], [-1] + [0] * len(branch_lengths)


def tree_end(lengths: Sequence[int], parents: Sequence[int]) -> torch.Tensor:
    """int32 [T]: for each token, the end of the subtree of its node."""
    _check(lengths, parents)
    stops = _stops(lengths)
    reach = list(stops)
    for node in range(len(lengths) - 1, -1, -1):
        if parents[node] >= 0:
            reach[parents[node]] = max(reach[parents[node]], reach[node])
    return torch.tensor(reach, dtype=torch.int32).repeat_interleave(torch.tensor(lengths))


def predicting_rows(lengths: Sequence[int], parents: Sequence[int]) -> torch.Tensor:
    """int64 [T]: the row whose output predicts each token, -1 for the first token of a root.

    The last row of a prefix appears once per branch: gather hidden states by this before the loss.
    """
    _check(lengths, parents)
    stops = _stops(lengths)
    rows = torch.arange(sum(lengths)) - 1
    for parent, length, stop in zip(parents, lengths, stops, strict=True):
        rows[stop - length] = stops[parent] - 1 if parent >= 0 else -1
    return rows


def path_rows(lengths: Sequence[int], parents: Sequence[int], node: int) -> torch.Tensor:
    """int64: rows of the sequence that ends with `node`, root first; takes a packed tensor apart, or lays one out."""
    _check(lengths, parents)
    stops = _stops(lengths)
    parts = []
    while node >= 0:
        parts.append(torch.arange(stops[node] - lengths[node], stops[node]))
        node = parents[node]
    return torch.cat(parts[::-1])


def tree_positions(lengths: Sequence[int], parents: Sequence[int]) -> torch.Tensor:
    """int64 [T]: each token's index in its own sequence, so that every branch continues where the prefix stopped."""
    _check(lengths, parents)
    starts: list[int] = []
    for parent in parents:
        starts.append(starts[parent] + lengths[parent] if parent >= 0 else 0)
    return torch.cat([torch.arange(start, start + length) for start, length in zip(starts, lengths, strict=True)])


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

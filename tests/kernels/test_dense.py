"""The dense path's cut into padded documents; `test_attention` compares its results with the reference."""

from __future__ import annotations

import pytest
import torch
from kernel_bench.testing import random_inputs
from videoseek_kernels import TokenMask, tdam_attention
from videoseek_kernels.dense import PaddedDocuments, document_bounds, padded_attention


def test_lengths_share_a_bucket_only_when_similar() -> None:
    sizes = [40, 3, 38, 1, 2, 39]
    end = torch.tensor([sum(sizes[: i + 1]) for i, size in enumerate(sizes) for _ in range(size)], dtype=torch.int32)
    ones = torch.ones_like(end)
    mask = TokenMask(end, ones, ones)
    documents = PaddedDocuments.build(mask)
    assert [tuple(rows.shape) for rows, _ in documents.buckets] == [(3, 40), (1, 3), (1, 2), (1, 1)]
    q, k, v, _ = (x.detach().double() for x in random_inputs(len(end), (4, 2), 8, torch.float32))
    wanted = tdam_attention(q, k, v, mask, impl="reference")
    torch.testing.assert_close(padded_attention(q, k, v, documents), wanted, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("end", "bounds"),
    [
        ([1], [0, 1]),
        ([1, 2, 3], [0, 1, 2, 3]),
        ([3, 3, 3], [0, 3]),
        ([2, 2, 5, 5, 5], [0, 2, 5]),
        ([6, 6, 4, 4, 6, 6, 7], [0, 6, 7]),  # a prompt of two with two branches, then a token alone
        ([1, 2, 5, 4, 5], [0, 1, 2, 5]),
    ],
    ids=str,
)
def test_document_bounds(end: list[int], bounds: list[int]) -> None:
    assert document_bounds(torch.tensor(end, dtype=torch.int32)) == bounds

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from videoseek.rollout.sampling import draw_numbers, sample_tokens, stream_key, stream_uniforms

NONE = torch.tensor([], dtype=torch.long)


def grid(count: int) -> torch.Tensor:
    """Evenly spread uniforms: drawing with all of them gives each token its share to within 1 / count."""
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


def shares(logits: list[float], temperature: float = 1.0, top_p: float = 1.0, banned: torch.Tensor = NONE) -> list:
    rows = torch.tensor([logits]).expand(1000, -1)
    tokens, _ = sample_tokens(rows, grid(1000), temperature, top_p, banned)
    return (torch.bincount(tokens, minlength=len(logits)) / 1000).tolist()


LOGITS = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().tolist()


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, [0.5, 0.3, 0.15, 0.05]),
        ({"temperature": 0.5}, [0.25 / 0.365, 0.09 / 0.365, 0.0225 / 0.365, 0.0025 / 0.365]),
        ({"top_p": 0.5}, [1, 0, 0, 0]),
        ({"top_p": 0.6}, [0.625, 0.375, 0, 0]),
        ({"top_p": 0.9}, [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0]),
        ({"banned": torch.tensor([0, 3])}, [0, 2 / 3, 1 / 3, 0]),
        ({"banned": torch.tensor([0]), "top_p": 0.55}, [0, 1, 0, 0]),
    ],
    ids=["plain", "cold", "top 0.5", "top 0.6", "top 0.9", "banned", "banned and top"],
)
def test_tokens_are_drawn_in_their_shares(options: dict[str, object], wanted: list[float]) -> None:
    np.testing.assert_allclose(shares(LOGITS, **options), wanted, atol=2e-3)


def test_shares_do_not_depend_on_the_order_of_the_vocabulary() -> None:
    turned = shares(LOGITS[::-1], top_p=0.9)
    np.testing.assert_allclose(turned[::-1], shares(LOGITS, top_p=0.9), atol=2e-3)


def test_logprobs_are_of_the_whole_distribution_at_temperature() -> None:
    logits = torch.tensor([LOGITS, LOGITS])
    tokens, logprobs = sample_tokens(logits, torch.tensor([0.0, 0.999]), 0.5, 0.6, torch.tensor([0]))
    wanted = torch.log_softmax(logits / 0.5, -1).gather(-1, tokens[:, None])[:, 0]
    torch.testing.assert_close(logprobs, wanted)


def test_greedy_takes_the_likeliest_token_that_is_allowed() -> None:
    tokens, logprobs = sample_tokens(torch.tensor([LOGITS]), None, 1.0, 1.0, torch.tensor([0]))
    assert tokens.tolist() == [1]
    torch.testing.assert_close(logprobs, torch.tensor([0.3]).log())


@settings(deadline=None)
@given(
    logits=st.lists(st.floats(-200, 200, width=32), min_size=3, max_size=40),
    uniform=st.floats(0, 1, exclude_max=True) | st.sampled_from([0.0, 1 - 2**-53]),
    top_p=st.sampled_from([1.0, 0.9, 0.01]),
    data=st.data(),
)
def test_banned_tokens_are_never_drawn(logits: list[float], uniform: float, top_p: float, data: st.DataObject) -> None:
    """Also where all weight lies on them but a denormal rest, and where rounding meets the end of the table."""
    size = len(logits)
    banned = data.draw(st.lists(st.integers(0, size - 1), max_size=size - 1, unique=True))
    best = max(logits[i] for i in range(size) if i not in banned)
    capped = [value if i not in banned else min(value, best + 300) for i, value in enumerate(logits)]
    uniforms = torch.tensor([uniform], dtype=torch.float64)
    for chosen in (uniforms, None):
        tokens, logprobs = sample_tokens(torch.tensor([capped]), chosen, 1.0, top_p, torch.tensor(banned).long())
        assert 0 <= int(tokens) < size and int(tokens) not in banned
        assert bool(torch.isfinite(logprobs).all())


def test_rows_are_drawn_independently() -> None:
    logits = torch.randn(6, 30)
    together, _ = sample_tokens(logits, grid(6), 1.0, 0.9, NONE)
    alone = [int(sample_tokens(logits[i : i + 1], grid(6)[i : i + 1], 1.0, 0.9, NONE)[0]) for i in range(6)]
    assert together.tolist() == alone


def test_a_stream_depends_on_seed_sample_index_and_draw_alone() -> None:
    keys = [(0, "a", 0), (0, "a", 1), (1, "a", 0), (0, "b", 0), (0, "1/a", 0), (10, "a", 0), (1, "0/a", 0)]
    keys += [(0, "a", 0, 1), (0, "a", 0, 2), (0, "a", 1, 1), (0, "1/a", 0, 1)]
    streams = {key: tuple(stream_uniforms(stream_key(*key), 0, 4)) for key in keys}
    assert len(set(streams.values())) == len(keys)
    assert stream_key(0, "a", 0, 0) == stream_key(0, "a", 0)
    assert streams[0, "a", 0] == tuple(stream_uniforms(stream_key(0, "a", 0), 0, 4))


def test_the_draws_of_a_later_turn_go_on_where_the_last_turn_ended() -> None:
    key = stream_key(3, "sample", 5)
    whole = stream_uniforms(key, 0, 12)
    np.testing.assert_array_equal(np.concatenate([stream_uniforms(key, 0, 5), stream_uniforms(key, 5, 7)]), whole)
    # The key of a first draw and its numbers are part of what a seed means.
    np.testing.assert_array_equal(whole, np.random.Generator(np.random.Philox(key=key)).random(12))


def test_repeated_samples_of_a_round_are_numbered() -> None:
    assert draw_numbers([7, 3, 7, 7, 3, 1]) == [0, 0, 1, 2, 1, 0]


def test_streams_are_uniform_over_samples() -> None:
    first = np.array([stream_uniforms(stream_key(3, f"sample-{i}", 0), 0, 1)[0] for i in range(2000)])
    counts = np.histogram(first, bins=10, range=(0, 1))[0]
    assert counts.min() > 140 and counts.max() < 260

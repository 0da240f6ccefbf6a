"""The store of decoded clips: bounded in bytes, least recently used goes first, shared by threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from videoseek.types import Clip
from videoseek.video.cache import FrameCache

FRAME_BYTES = 28 * 28 * 3


def clip(name: str, num_frames: int = 2) -> Clip:
    return Clip(name, 0.0, 1.0, tuple(float(i) for i in range(num_frames)), 28, 28, 2.0)


def load(wanted: Clip) -> torch.Tensor:
    return torch.zeros(len(wanted.frame_seconds), wanted.height, wanted.width, 3, dtype=torch.uint8)


def never(wanted: Clip) -> torch.Tensor:
    raise AssertionError(f"{wanted.video} should be in memory")


def test_equal_clips_share_one_tensor() -> None:
    cache = FrameCache(10 * FRAME_BYTES)
    assert cache.get(clip("a"), load) is cache.get(clip("a"), never)


def test_least_recently_used_goes_first() -> None:
    cache = FrameCache(4 * FRAME_BYTES)
    cache.get(clip("a"), load)
    cache.get(clip("b"), load)
    cache.get(clip("a"), never)
    cache.get(clip("c"), load)
    assert clip("a") in cache and clip("c") in cache and clip("b") not in cache


def test_clip_larger_than_the_store_is_returned_and_evicts_nothing() -> None:
    cache = FrameCache(3 * FRAME_BYTES)
    cache.get(clip("a"), load)
    assert cache.get(clip("b", 4), load).shape == (4, 28, 28, 3)
    assert clip("a") in cache and clip("b", 4) not in cache and cache.num_bytes == 2 * FRAME_BYTES


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 4)), max_size=40), st.integers(0, 12))
def test_bytes_stay_within_the_bound_and_are_counted_right(requests, num_frames) -> None:
    cache = FrameCache(num_frames * FRAME_BYTES)
    held: dict[Clip, int] = {}
    for name, pairs in requests:
        wanted = clip(str(name), 2 * pairs)
        held[wanted] = cache.get(wanted, load).nbytes
        assert cache.num_bytes <= cache.max_bytes
        assert cache.num_bytes == sum(size for one, size in held.items() if one in cache)


def test_failed_load_leaves_no_trace() -> None:
    cache = FrameCache(10 * FRAME_BYTES)
    with pytest.raises(AssertionError):
        cache.get(clip("a"), never)
    assert len(cache) == 0 and cache.num_bytes == 0


def test_threads_agree_on_the_count() -> None:
    cache = FrameCache(7 * FRAME_BYTES)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: cache.get(clip(str(i % 5), 2 + 2 * (i % 2)), load), range(2000)))
    held = [clip(str(i), n) for i in range(5) for n in (2, 4) if clip(str(i), n) in cache]
    assert cache.num_bytes == sum(len(one.frame_seconds) * FRAME_BYTES for one in held) <= cache.max_bytes


def test_clear_empties_it() -> None:
    cache = FrameCache(10 * FRAME_BYTES)
    cache.get(clip("a"), load)
    cache.clear()
    assert len(cache) == 0 and cache.num_bytes == 0 and clip("a") not in cache


def test_smaller_bound_drops_the_oldest_at_once() -> None:
    cache = FrameCache(6 * FRAME_BYTES)
    for name in "abc":
        cache.get(clip(name), load)
    cache.resize(3 * FRAME_BYTES)
    assert clip("c") in cache and len(cache) == 1 and cache.num_bytes == 2 * FRAME_BYTES
    cache.resize(0)
    assert len(cache) == cache.num_bytes == 0


@pytest.mark.parametrize("make", [FrameCache, FrameCache(1).resize], ids=["new", "resize"])
def test_negative_bound_is_refused(make) -> None:
    with pytest.raises(ValueError, match="max_bytes is -1"):
        make(-1)


def test_clip_loaded_ahead_outlasts_used_ones_until_its_first_use() -> None:
    cache = FrameCache(4 * FRAME_BYTES)
    cache.load_ahead(clip("ahead"), load)
    for name in "abc":
        cache.get(clip(name), load)
    assert clip("ahead") in cache and clip("c") in cache and cache.num_bytes_ahead() == 2 * FRAME_BYTES
    cache.get(clip("ahead"), never)
    assert cache.num_bytes_ahead() == 0
    for name in "de":
        cache.get(clip(name), load)
    assert clip("ahead") not in cache


def test_clips_ahead_make_room_when_they_alone_fill_the_store() -> None:
    cache = FrameCache(4 * FRAME_BYTES)
    for name in "ab":
        cache.load_ahead(clip(name), load)
    cache.get(clip("c"), load)
    assert clip("a") not in cache and clip("b") in cache and clip("c") in cache
    assert cache.num_bytes == 4 * FRAME_BYTES and cache.num_bytes_ahead() == 2 * FRAME_BYTES
    cache.give_up_ahead()
    cache.get(clip("c"), never)
    cache.get(clip("d"), load)
    assert clip("b") not in cache and cache.num_bytes_ahead() == 0

"""Frame choice and sizes: equal to qwen-vl-utils where that library keeps its limits, lawful everywhere."""

from __future__ import annotations

import importlib.util
import sys
from fractions import Fraction
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from videoseek.config import VideoConfig
from videoseek.video import quotas
from videoseek.video.index import VideoIndex, VideoInfo
from videoseek.video.quotas import crop_clip, overview_clip
from videoseek.video.sampling import count_frames, frame_times, linspace_frames, smart_size

NUM_CLIPS = 1000
TOKEN_PIXELS = 28 * 28


@pytest.fixture(scope="module")
def peer() -> ModuleType:
    """The pure functions of qwen-vl-utils; torchvision, which it imports but these do not use, is stood in for."""
    spec = importlib.util.find_spec("qwen_vl_utils")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("qwen-vl-utils is not installed")
    stand_ins = {name: MagicMock() for name in ("torchvision", "torchvision.transforms") if name not in sys.modules}
    sys.modules.update(stand_ins)
    try:
        path = f"{spec.submodule_search_locations[0]}/vision_process.py"
        module_spec = importlib.util.spec_from_file_location("qwen_vision_process", path)
        assert module_spec is not None and module_spec.loader is not None
        module = importlib.util.module_from_spec(module_spec)
        module_spec.loader.exec_module(module)
    finally:
        for name in stand_ins:
            del sys.modules[name]
    return module


def test_sizes_equal_the_peers(peer) -> None:
    rng = np.random.default_rng(0)
    compared = 0
    for _ in range(3000):
        height, width = (int(x) for x in rng.integers(16, 2200, 2))
        num_frames = 2 * int(rng.integers(1, 385))
        most = min(768 * 784.0, int(rng.choice([2048, 4096, 6144, 16384, 115200])) * 784 / num_frames * 2)
        least = min(float(rng.choice([4, 20, 128])) * 784, most)
        expected = peer.smart_resize(height, width, factor=28, min_pixels=least, max_pixels=most)
        if min(expected) == 0 or expected[0] * expected[1] > most:
            continue  # there the peer leaves its own limits
        assert smart_size(height, width, least, most) == expected
        compared += 1
    assert compared > 2500


class _NumberedFrames:
    """A reader of the peer's whose frames have a size and no pixels."""

    shape = (0, 0, 0)  # frames, height, width
    fps = 1.0

    def __init__(self, path: str) -> None:
        pass

    def __len__(self) -> int:
        return self.shape[0]

    def get_avg_fps(self) -> float:
        return self.fps

    def get_batch(self, indices: list[int]) -> _NumberedFrames:
        self.num_asked = len(indices)
        return self

    def asnumpy(self) -> np.ndarray:
        return np.broadcast_to(np.uint8(0), (self.num_asked, *self.shape[1:], 3))


def fetched(peer: ModuleType, monkeypatch: pytest.MonkeyPatch, **asked: Any) -> tuple[list[int], tuple[int, int]]:
    """Indices and size of the clip that the peer's whole `fetch_video` makes."""
    sizes = []

    def resize(frames: Any, size: list[int], **options: Any) -> Any:
        sizes.append(tuple(size))
        return frames

    monkeypatch.setitem(sys.modules, "decord", SimpleNamespace(VideoReader=_NumberedFrames))
    monkeypatch.setattr(peer, "get_video_reader_backend", lambda: "decord")
    monkeypatch.setattr(peer, "VIDEO_READER_BACKENDS", {"decord": peer._read_video_decord})
    monkeypatch.setattr(peer.transforms.functional, "resize", resize)
    # A copy of thousands of empty frames is all that would take time here.
    monkeypatch.setattr(peer.torch, "tensor", lambda array: torch.empty(array.shape, device="meta"))
    _, metadata = peer.fetch_video({"video": "v.mp4", **asked}, return_video_metadata=True)
    return metadata["frames_indices"], sizes[0]


def test_overviews_and_crops_are_those_of_the_peers_whole_function(peer, monkeypatch) -> None:
    """Size, duration, rate, limits and window at random. Indices are equal wherever the peer keeps its minimum; sizes
    wherever it keeps the quota, which its allowance of 1.05 times the minimum may exceed."""
    rng = np.random.default_rng(1)
    num_sizes = compared = 0
    while compared < NUM_CLIPS:
        rate = Fraction(str(rng.choice(["1", "10", "15", "24000/1001", "24", "25", "30", "50", "60000/1001", "120"])))
        total, height, width = int(rng.integers(8, 20000)), *(int(side) for side in rng.integers(64, 2200, 2))
        monkeypatch.setattr(_NumberedFrames, "shape", (total, height, width))
        monkeypatch.setattr(_NumberedFrames, "fps", float(rate))
        quota = int(rng.choice([2048, 4096, 6144, 16384]))
        asked = {
            "fps": float(rng.choice([0.5, 1, 2, 4])),
            "min_frames": int(rng.choice([2, 4, 8])),
            "max_frames": int(rng.choice([8, 64, 768])),
        }
        limits = VideoConfig(
            overview_fps=asked["fps"],
            crop_fps=asked["fps"],
            overview_tokens=quota,
            coarse_tokens=quota,
            min_frames=int(asked["min_frames"]),
            max_frames=int(asked["max_frames"]),
        )
        stamps = np.arange(total)
        info = VideoInfo("v.mp4", float(total / rate), width, height, float(rate), total)
        index = VideoIndex(info, stamps, stamps[:1], stamps[:1], 0, 1 / rate, None)
        monkeypatch.setattr(quotas, "load_index", lambda path, index=index: index)
        clip, window = overview_clip(info, limits), {}
        if rng.random() < 0.5:
            start, end = sorted(rng.uniform(0, info.duration_seconds, 2).tolist())
            if np.floor(end * float(rate)) - np.ceil(start * float(rate)) < asked["min_frames"]:
                continue  # fewer frames than the minimum: the peer returns fewer or fails
            clip, window = crop_clip(info, start, end, "coarse", limits), {"video_start": start, "video_end": end}
        budget = {"min_pixels": 20 * TOKEN_PIXELS, "total_pixels": quota * TOKEN_PIXELS}
        indices, size = fetched(peer, monkeypatch, **asked, **window, **budget)
        assert [round(seconds * rate) for seconds in clip.frame_seconds] == indices
        compared += 1
        in_quota = size[0] * size[1] * len(indices) / 2 <= budget["total_pixels"]
        if min(size) > 0 and in_quota and 21 * len(indices) / 2 <= quota:
            assert (clip.height, clip.width) == size
            num_sizes += 1
    assert num_sizes > 0.85 * NUM_CLIPS


@given(
    height=st.integers(1, 5000),
    width=st.integers(1, 5000),
    most=st.floats(784, 768 * 784),
    share=st.floats(0, 1),
)
def test_sizes_are_lawful(height, width, most, share) -> None:
    if max(height, width) > 200 * min(height, width):
        with pytest.raises(ValueError, match=f"{height}x{width}"):
            smart_size(height, width, share * most, most)
        return
    new_height, new_width = smart_size(height, width, share * most, most)
    assert new_height % 28 == 0 and new_width % 28 == 0 and min(new_height, new_width) >= 28
    assert new_height * new_width <= most


@pytest.mark.parametrize(("least", "most"), [(0, 783), (2000, 1000), (0, float("nan"))])
def test_sizes_without_room_are_refused(least, most) -> None:
    with pytest.raises(ValueError, match="max_pixels"):
        smart_size(100, 100, least, most)


@given(st.floats(0, 1e5), st.integers(1, 50), st.integers(2, 768))
def test_counts_are_even_and_within_limits(wanted, least, most) -> None:
    count = count_frames(wanted, least, most)
    assert count % 2 == 0 and 2 <= count <= most
    assert count >= min(least, most - most % 2)
    if least + 1 <= wanted <= most:
        assert wanted - 2 < count <= wanted


def test_a_clip_of_one_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="max_frames is 1"):
        count_frames(10, 1, 1)


@given(
    start=st.floats(0, 1e4),
    length=st.floats(0.5, 1e4),
    fps=st.sampled_from([0.1, 0.5, 1.0, 2.0, 3.7]),
    least=st.integers(1, 8),
    most=st.integers(8, 768),
)
def test_uniform_times_ascend_evenly_inside_the_half_open_window(start, length, fps, least, most) -> None:
    end = start + length
    times = np.array(frame_times(start, end, fps, least, most))
    assert len(times) % 2 == 0 and least <= len(times) <= most
    assert times[0] == start and (times < end).all()
    assert np.allclose(np.diff(times), (end - start) / len(times), rtol=0.01, atol=1e-6)


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        ((0.0, 32.0), [2.0 * i for i in range(16)]),
        ((8.0, 12.0), [8.0, 10.0]),
        ((8.0, 16.0), [8.0, 10.0, 12.0, 14.0]),
        ((8.0, 15.999), [8.0, 10.0, 12.0, 14.0]),
        ((8.0, 13.0), [8.0, 10.5]),
        ((0.1, 4.1), [0.1, 2.1]),
        ((3.0, 4.0), [3.0, 3.5]),
    ],
    ids=str,
)
def test_uniform_times_at_half_a_frame_a_second(window, expected) -> None:
    assert frame_times(*window, 0.5, 2, 16) == pytest.approx(expected, abs=1e-9)


def test_pairs_stay_in_their_stretch() -> None:
    times = frame_times(0.0, 32.0, 0.5, 2, 16)
    assert all(first // 4 == second // 4 for first, second in zip(times[::2], times[1::2], strict=True))


@pytest.mark.parametrize("window", [(4.0, 4.0), (5.0, 4.0), (0.0, float("nan"))], ids=str)
def test_windows_without_length_are_refused(window) -> None:
    with pytest.raises(ValueError, match="window"):
        frame_times(*window, 2.0, 4, 768)


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [
        (5, 5, (5, 5, 5, 5)),
        (5, 7, (5, 6, 7, 7)),
        (5, 8, (5, 6, 7, 8)),
        (5, 9, (5, 6, 8, 9)),
        (0, 59, (0, 20, 39, 59)),
    ],
)
def test_few_frames_are_filled_up_by_the_last(first, last, expected) -> None:
    assert linspace_frames(first, last, 30.0, 2.0, 4, 768) == expected


@pytest.mark.parametrize("available", [10, 11])
def test_slow_source_gives_each_frame_at_most_once(available) -> None:
    frames = linspace_frames(0, available - 1, 1.0, 2.0, 4, 768)
    assert len(frames) == len(set(frames)) == 10 and (frames[0], frames[-1]) == (0, available - 1)

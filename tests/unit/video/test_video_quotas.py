"""Clips of overviews and crops: quotas hold for every video, and the published examples come out."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.video_samples import steady, write_video, x264

from videoseek.config import UsageError, VideoConfig
from videoseek.config_merge import check_limits
from videoseek.types import STRATEGIES
from videoseek.video.decode import probe, read_frames
from videoseek.video.errors import VideoError
from videoseek.video.index import VideoInfo
from videoseek.video.quotas import crop_clip, crop_tokens, overview_clip

PAPER = VideoConfig()
UNIFORM = VideoConfig(frame_policy="uniform")
TINY = VideoConfig(
    overview_fps=0.5,
    crop_fps=0.5,
    overview_tokens=8,
    coarse_tokens=2,
    medium_tokens=4,
    fine_tokens=8,
    min_frames=2,
    max_frames=16,
    frame_policy="uniform",
)
TINY_VIDEO = VideoInfo("tiny.mp4", 32.0, 112, 112, 4.0, 128)


def test_tiny_overview_is_sixteen_frames_of_one_token_a_pair() -> None:
    clip = overview_clip(TINY_VIDEO, TINY)
    assert clip.frame_seconds == tuple(2.0 * i for i in range(16))
    assert (clip.height, clip.width, clip.num_tokens, clip.second_per_grid) == (28, 28, 8, 4.0)


@pytest.mark.parametrize(
    ("window", "strategy", "times", "side", "tokens"),
    [
        ((8.0, 12.0), "coarse", (8.0, 10.0), 28, 1),
        ((8.0, 12.0), "medium", (8.0, 10.0), 56, 4),
        ((8.0, 12.0), "fine", (8.0, 10.0), 56, 4),
        ((8.0, 16.0), "medium", (8.0, 10.0, 12.0, 14.0), 28, 2),
        ((8.0, 16.0), "fine", (8.0, 10.0, 12.0, 14.0), 56, 8),
    ],
)
def test_tiny_crops_have_the_expected_size_and_tokens(window, strategy, times, side, tokens) -> None:
    clip = crop_clip(TINY_VIDEO, *window, strategy, TINY)
    assert clip.frame_seconds == times
    assert (clip.height, clip.width, clip.num_tokens, clip.sample_fps) == (side, side, tokens, 0.5)
    assert (clip.start_seconds, clip.end_seconds) == window


@pytest.mark.parametrize(
    ("source", "seconds", "tokens", "frames", "size"),
    [
        ((384, 640), 1600.0, 16384, 768, (140, 224)),
        ((384, 640), 2.0, 2048, 4, (392, 644)),
        ((384, 640), 35.0, 6144, 70, (280, 476)),
        ((360, 640), 28.0, 4096, 56, (252, 448)),
    ],
    ids=["overview_1600s", "coarse_2s", "fine_35s", "medium_28s"],
)
def test_quotas_equal_the_papers_figure(source, seconds, tokens, frames, size) -> None:
    """Figure 3 of Video-o3 prints these frames and sizes; the source sizes are our inference."""
    height, width = source
    info = VideoInfo("v.mp4", seconds, width, height, 30.0, round(30 * seconds))
    clip = overview_clip(info, replace(UNIFORM, overview_tokens=tokens))
    assert (len(clip.frame_seconds), (clip.height, clip.width)) == (frames, size)


videos = st.builds(
    lambda duration, width, height: VideoInfo("v.mp4", duration, width, height, 30.0, 100),
    st.floats(1.0, 20000.0),
    st.integers(28, 4000),
    st.integers(28, 4000),
)
budgets = st.builds(
    lambda tokens, least, most, cap: VideoConfig(
        overview_tokens=tokens,
        coarse_tokens=tokens,
        medium_tokens=tokens,
        fine_tokens=tokens,
        min_frames=least,
        max_frames=most,
        max_tokens_per_grid=cap,
        frame_policy="uniform",
    ),
    st.integers(1, 20000),
    st.integers(1, 64),
    st.integers(2, 1000),
    st.integers(1, 1000),
)


@settings(max_examples=300)
@given(videos, budgets, st.floats(0, 0.9), st.sampled_from(STRATEGIES))
def test_quotas_are_never_exceeded(info, limits, start_share, strategy) -> None:
    start_seconds = start_share * info.duration_seconds
    clips = [
        (overview_clip(info, limits), limits.overview_tokens),
        (crop_clip(info, start_seconds, info.duration_seconds, strategy, limits), crop_tokens(strategy, limits)),
    ]
    for clip, quota in clips:
        grids, high, wide = clip.grid_thw
        assert clip.num_tokens <= quota
        assert high * wide // 4 <= limits.max_tokens_per_grid
        assert 2 * grids <= limits.max_frames
        assert all(clip.start_seconds <= t < clip.end_seconds for t in clip.frame_seconds)


def test_quota_smaller_than_the_frames_takes_frames_away_first() -> None:
    clip = crop_clip(TINY_VIDEO, 0.0, 32.0, "coarse", replace(TINY, min_frames=8))
    assert clip.num_tokens == 2 and len(clip.frame_seconds) == 4


def test_small_frames_are_enlarged_to_the_floor_only_within_the_quota() -> None:
    info = VideoInfo("v.mp4", 10.0, 64, 64, 30.0, 300)
    roomy = crop_clip(info, 0.0, 10.0, "fine", UNIFORM)
    tight = crop_clip(info, 0.0, 10.0, "fine", replace(UNIFORM, fine_tokens=40))
    assert roomy.num_tokens // 10 >= 20 and tight.num_tokens <= 40


def test_linspace_takes_the_files_own_frames_both_ends_included(tmp_path) -> None:
    times = [0.0, 0.1, 0.2, 0.9, 1.0, 2.0, 2.5, 3.0, 3.1, 3.2, 3.3, 4.0]
    path = write_video(tmp_path / "v.mp4", times, options=x264(5))
    info = probe(str(path))
    clip = crop_clip(info, 0.9, 3.0, "medium", PAPER)
    assert set(clip.frame_seconds) <= set(times)
    assert (clip.frame_seconds[0], clip.frame_seconds[-1]) == (0.9, 3.0)
    whole = overview_clip(info, PAPER)
    assert (whole.frame_seconds[0], whole.frame_seconds[-1]) == (0.0, 4.0)


def test_linspace_window_between_two_frames_shows_the_one_on_screen(tmp_path) -> None:
    path = write_video(tmp_path / "v.mp4", [0.0, 1.0, 9.0, 10.0], options=x264(5))
    clip = crop_clip(probe(str(path)), 3.0, 5.0, "medium", PAPER)
    assert clip.frame_seconds == (1.0,) * 4
    assert len(read_frames(clip).flatten(1).unique(dim=0)) == 1


def test_linspace_of_a_steady_file_matches_indices(tmp_path) -> None:
    path = write_video(tmp_path / "v.mkv", steady(100, 30), options=x264(25))
    clip = overview_clip(probe(str(path)), PAPER)
    assert [round(t * 30) for t in clip.frame_seconds] == [0, 20, 40, 59, 79, 99]


@pytest.mark.parametrize("window", [(-1.0, 4.0), (4.0, 4.0), (9.0, 4.0), (30.0, 33.0), (float("nan"), 4.0)], ids=str)
def test_windows_outside_are_refused(window) -> None:
    with pytest.raises(VideoError) as caught:
        crop_clip(TINY_VIDEO, *window, "fine", TINY)
    assert caught.value.code == "window_outside" and "tiny.mp4" in caught.value.message


def test_strip_is_refused_by_name() -> None:
    with pytest.raises(VideoError) as caught:
        overview_clip(VideoInfo("strip.mp4", 4.0, 5000, 20, 10.0, 40), UNIFORM)
    assert caught.value.code == "size_unsupported" and "strip.mp4" in caught.value.message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop_fps": 0.0}, "crop_fps must be above 0, got 0.0"),
        ({"fine_tokens": -1}, "fine_tokens must be at least 1, got -1"),
        ({"overview_fps": float("inf")}, "overview_fps must be finite, got inf"),
        ({"max_frames": 1}, "max_frames must be at least 2, got 1"),
        ({"frame_policy": "random"}, "frame_policy must be one of linspace, uniform, got 'random'"),
    ],
    ids=str,
)
def test_limits_out_of_range_are_refused(changes, message) -> None:
    check_limits(PAPER)
    with pytest.raises(UsageError) as caught:
        check_limits(replace(PAPER, **changes))
    assert str(caught.value) == message


def test_unknown_strategy_is_refused() -> None:
    with pytest.raises(ValueError, match="'finest' is not one of coarse, medium, fine"):
        crop_tokens("finest", PAPER)

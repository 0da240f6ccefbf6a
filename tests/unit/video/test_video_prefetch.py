"""Clips that are decoded ahead: in the background, within the cache's bound, with their errors kept for the reader."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.damaged_video import damaged_copy
from support.video_samples import read_number, steady, write_video, x264

from videoseek.config import VideoConfig
from videoseek.types import Clip
from videoseek.video import decode, worker
from videoseek.video.cache import FrameCache
from videoseek.video.decode import FRAME_CACHE, prefetch, read_frames
from videoseek.video.errors import VideoError
from videoseek.video.prefetch import Prefetcher, num_bytes
from videoseek.video.service import cores_per_rank, start_video_service, stop_video_service

MOST_SECONDS = 60.0
FRAME_BYTES = 28 * 28 * 3


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    FRAME_CACHE.clear()
    yield
    stop_video_service()
    FRAME_CACHE.clear()
    FRAME_CACHE.resize(512 * 2**20)


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("prefetch")
    return [str(write_video(folder / f"{i}.mp4", steady(40, 4), options=x264(16))) for i in range(4)]


def clip(path: str, start: float) -> Clip:
    return Clip(path, start, start + 1, (start, start + 0.5), 56, 112, 2.0)


def small(name: str, num_frames: int = 2) -> Clip:
    return Clip(name, 0.0, 1.0, tuple(float(i) for i in range(num_frames)), 28, 28, 2.0)


def wait_for(holds) -> None:
    until = time.monotonic() + MOST_SECONDS
    while not holds():
        assert time.monotonic() < until, "it did not come about in time"
        time.sleep(0.005)


def test_clips_are_decoded_while_the_main_thread_is_busy(videos, monkeypatch) -> None:
    start_video_service(VideoConfig(), 1)
    clips = [clip(path, float(second)) for path in videos for second in range(6)]
    started = time.monotonic()
    prefetch(clips)
    assert time.monotonic() - started < 1.0
    busy = 0
    until = time.monotonic() + MOST_SECONDS
    while not all(one in FRAME_CACHE for one in clips):
        busy += sum(range(1000))
        assert time.monotonic() < until
    monkeypatch.setattr(worker.decoder(), "frames", never)
    for one in reversed(clips):
        first, second = (read_number(frame.numpy()) for frame in read_frames(one))
        assert (first, second) == (int(4 * one.start_seconds), int(4 * one.start_seconds) + 2)


def never(*arguments: object) -> None:
    raise AssertionError("all frames should be in memory")


def test_damaged_film_raises_at_the_read_of_its_clip_and_of_no_other(tmp_path, videos) -> None:
    start_video_service(VideoConfig(), 1)
    broken = clip(damaged_copy(videos[0], tmp_path / "broken.mp4"), 8.0)
    clips = [clip(videos[0], 1.0), broken, clip(str(tmp_path / "missing.mp4"), 0.0), clip(videos[1], 2.0)]
    prefetch(clips)
    wait_for(lambda: clips[0] in FRAME_CACHE and clips[3] in FRAME_CACHE)
    assert [read_number(frame.numpy()) for frame in read_frames(clips[3])] == [8, 10]
    for one, code in ((broken, "decode_failed"), (clips[2], "missing_file")):
        for _ in range(2):  # from the background, then anew
            with pytest.raises(VideoError) as caught:
                read_frames(one)
            assert caught.value.code == code and one.video in caught.value.message
    assert [read_number(frame.numpy()) for frame in read_frames(clips[0])] == [4, 6]


class Loader:
    """Counts loads; a load waits until the gate is open."""

    def __init__(self) -> None:
        self.loaded: list[str] = []
        self.gate = threading.Event()

    def __call__(self, wanted: Clip) -> torch.Tensor:
        assert self.gate.wait(MOST_SECONDS)
        self.loaded.append(wanted.video)
        if wanted.video == "bad":
            raise VideoError("decode_failed", "bad is bad.")
        return torch.zeros(len(wanted.frame_seconds), wanted.height, wanted.width, 3, dtype=torch.uint8)


def test_prefetch_stays_within_the_cache() -> None:
    cache, load = FrameCache(6 * FRAME_BYTES), Loader()
    load.gate.set()
    prefetcher = Prefetcher(cache, load)
    clips = [small(str(i)) for i in range(8)]
    prefetcher.prefetch(clips, 2)
    wait_for(lambda: len(load.loaded) == 3)
    time.sleep(0.1)
    assert len(load.loaded) == 3 and cache.num_bytes <= cache.max_bytes
    for number, one in enumerate(clips):
        assert prefetcher.read(one).shape == (2, 28, 28, 3)
        wait_for(lambda number=number: len(load.loaded) == min(number + 4, 8))
    assert sorted(load.loaded) == [str(i) for i in range(8)]  # each once


def test_clip_that_is_on_its_way_is_waited_for_and_one_that_is_not_is_decoded_here() -> None:
    load = Loader()
    prefetcher = Prefetcher(FrameCache(100 * FRAME_BYTES), load)
    prefetcher.prefetch([small("a"), small("b")], 1)
    wait_for(lambda: small("a") in prefetcher._running)
    results: list[torch.Tensor] = []
    readers = [threading.Thread(target=lambda name=name: results.append(prefetcher.read(small(name)))) for name in "ba"]
    for reader in readers:
        reader.start()
    time.sleep(0.05)
    assert results == []
    load.gate.set()
    for reader in readers:
        reader.join(MOST_SECONDS)
    assert len(results) == 2 and sorted(load.loaded) == ["a", "b"]


def test_order_and_number_of_readers_do_not_matter() -> None:
    load = Loader()
    load.gate.set()
    prefetcher = Prefetcher(FrameCache(10 * FRAME_BYTES), load)
    clips = [small(str(i)) for i in range(40)]
    prefetcher.prefetch(clips, 4)
    seen: list[str] = []

    def read(some: list[Clip]) -> None:
        for one in some:
            assert prefetcher.read(one).shape == (2, 28, 28, 3)
            seen.append(one.video)

    readers = [threading.Thread(target=read, args=(clips[::-1][i::3],)) for i in range(3)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(MOST_SECONDS)
    assert sorted(seen) == sorted(one.video for one in clips)


def test_clip_larger_than_the_cache_is_left_to_the_reader() -> None:
    load = Loader()
    load.gate.set()
    prefetcher = Prefetcher(FrameCache(3 * FRAME_BYTES), load)
    prefetcher.prefetch([small("large", 4), small("a")], 1)
    wait_for(lambda: load.loaded == ["a"])
    assert num_bytes(small("large", 4)) == 4 * FRAME_BYTES == prefetcher.read(small("large", 4)).nbytes


def test_error_is_kept_once_and_cancel_forgets_it() -> None:
    load = Loader()
    load.gate.set()
    prefetcher = Prefetcher(FrameCache(100 * FRAME_BYTES), load)
    for _ in range(2):
        prefetcher.prefetch([small("bad")] * 3, 1)
        wait_for(lambda: small("bad") in prefetcher._errors)
    assert load.loaded == ["bad"]
    prefetcher.cancel()
    with pytest.raises(VideoError, match="bad is bad"):
        prefetcher.read(small("bad"))
    assert load.loaded == ["bad", "bad"]


def test_cores_are_shared_out_over_ranks(monkeypatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(12)))
    assert [cores_per_rank(n) for n in (1, 2, 5, 8, 16)] == [12, 6, 2, 1, 1]
    start_video_service(VideoConfig(cache_megabytes=3), 4)
    pool = worker.decoder()
    assert isinstance(pool, worker.WorkerPool) and (pool.num_workers, pool.num_cores) == (3, 3)
    assert FRAME_CACHE.max_bytes == 3 * 2**20
    with pytest.raises(ValueError, match="num_ranks is 0"):
        start_video_service(VideoConfig(), 0)


def test_forked_process_prefetches_by_itself(videos) -> None:
    start_video_service(VideoConfig(), 1)
    prefetch([clip(videos[0], 1.0)])
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        prefetch([clip(videos[1], 2.0)])
        wait_for(lambda: clip(videos[1], 2.0) in FRAME_CACHE)
        numbers = [read_number(frame.numpy()) for frame in read_frames(clip(videos[1], 2.0))]
        stop_video_service()
        os._exit(0 if numbers == [8, 10] else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert [read_number(frame.numpy()) for frame in decode.read_frames(clip(videos[0], 1.0))] == [4, 6]


RUN = """
import os, sys, time
sys.path[:0] = [sys.argv[2], sys.argv[2] + "/../.."]
from pathlib import Path
from test_video_worker import children, hang
from videoseek.config import VideoConfig
from videoseek.types import Clip
from videoseek.video import worker
from videoseek.video.decode import prefetch
from videoseek.video.service import start_video_service
path = hang(Path(sys.argv[1]))
os.sched_getaffinity = lambda process: {0, 1}
start_video_service(VideoConfig(stall_seconds=float(sys.argv[3])), 1)
prefetch([Clip(path, 0.0, 1.0, (0.25, 0.25 + i / 10), 28, 28, 2.0) for i in range(5)])
while len(children()) < 2:
    time.sleep(0.01)
time.sleep(0.5)
print(*children(), flush=True)
if sys.argv[4] == "kill":
    time.sleep(60)
"""


@pytest.mark.parametrize(("ending", "stall_seconds"), [("exit", 60.0), ("kill", 2.0)])
def test_no_worker_outlives_a_run_that_ends_in_mid_decode(tmp_path, ending, stall_seconds) -> None:
    """The workers hang over a pipe: at an exit they are killed, after a kill their alarm ends them."""
    arguments = [str(tmp_path / "f"), str(Path(__file__).parent), str(stall_seconds), ending]
    with subprocess.Popen([sys.executable, "-c", RUN, *arguments], stdout=subprocess.PIPE, text=True) as run:
        pids = [int(pid) for pid in run.stdout.readline().split()]
        if ending == "kill":
            run.kill()
        assert run.wait(20) == (0 if ending == "exit" else -signal.SIGKILL)
    assert len(pids) == 2
    until = time.monotonic() + 20
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < until, "a worker outlives its run"
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False

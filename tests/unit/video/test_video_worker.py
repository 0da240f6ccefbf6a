"""Worker processes: the same pixels as in this process, an end to every decode, and no trace of one that failed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from support.video_samples import KINDS, read_number, steady, write_folder, write_long_film, write_video, x264

from videoseek.types import Clip
from videoseek.video import watchdog, worker
from videoseek.video.decode import decode_clip, load_index, probe
from videoseek.video.errors import VideoError

STALL_SECONDS = 60.0


@pytest.fixture(autouse=True)
def _local_afterwards() -> Iterator[None]:
    yield
    worker.use_worker(None)


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> str:
    """32 seconds at 4 frames a second."""
    return str(write_video(tmp_path_factory.mktemp("worker") / "v.mp4", steady(128, 4), options=x264(16)))


def clip(path: str, *seconds: float) -> Clip:
    return Clip(path, 0.0, 32.0, seconds, 56, 112, 1.0)


def numbers(path: str, *seconds: float) -> list[int]:
    return [read_number(frame.numpy()) for frame in decode_clip(clip(path, *seconds))]


def children() -> set[int]:
    """Living child processes of this one."""
    tasks = Path("/proc/self/task").glob("*/children")
    return {int(pid) for task in tasks for pid in task.read_text().split()}


@pytest.fixture
def started(video, monkeypatch: pytest.MonkeyPatch) -> int:
    """Process id of a worker that has served once."""
    monkeypatch.setenv("VIDEOSEEK_CACHE", "")  # a stored index would need no worker
    before = children()
    worker.use_worker(STALL_SECONDS)
    probe(video)
    (pid,) = children() - before
    return pid


@pytest.mark.parametrize("name", ["b_frames", "webm_av1", "transport_stream", "avi_mpeg4", "frame_folder"])
def test_index_and_pixels_are_those_of_this_process(tmp_path, name) -> None:
    path = KINDS[name].write(tmp_path)
    seconds = load_index(path).seconds(slice(None))[1:21].tolist()
    own_index, own_pixels = load_index(path), decode_clip(clip(path, *seconds))
    worker.use_worker(STALL_SECONDS)
    index = load_index(path)
    assert index.info == own_index.info
    for field in ("stamps", "keyframes", "seek_stamps"):
        assert np.array_equal(getattr(index, field), getattr(own_index, field))
    for field in ("start_stamp", "time_base", "decoder_lag"):
        assert getattr(index, field) == getattr(own_index, field)
    assert torch.equal(decode_clip(clip(path, *seconds)), own_pixels)
    decode_clip(clip(path, *seconds)).zero_()  # pixels are the caller's own


def test_errors_are_those_of_this_process(tmp_path) -> None:
    (tmp_path / "v.mp4").write_bytes(b"nothing")
    messages = []
    for deadline in (None, STALL_SECONDS):
        worker.use_worker(deadline)
        with pytest.raises(VideoError) as caught:
            probe(str(tmp_path / "v.mp4"))
        messages.append((caught.value.code, caught.value.message))
    assert messages[0] == messages[1]


def test_worker_imports_nothing_heavy_and_inherits_nothing(video) -> None:
    code = (
        "import sys, videoseek.video.server; print(sorted({'torch', 'transformers', 'deepspeed'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
    before = children()
    with av.open(video), open(video, "rb"):
        worker.use_worker(STALL_SECONDS)
        probe(video)
    (pid,) = children() - before
    links = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
    assert [link for link in links if link.endswith("v.mp4")] == []
    assert sum(link.startswith("socket:") for link in links) <= 1


def hang(folder: Path) -> str:
    """A frame folder whose second image blocks whoever opens it: a pipe put there behind the index's back."""
    path = str(write_folder(folder, [0, 1, 2, 3]))
    assert probe(path).num_frames == 4
    changed = os.stat(folder).st_mtime_ns
    (folder / "frame_1.jpg").unlink()
    os.mkfifo(folder / "frame_1.jpg")
    os.utime(folder, ns=(changed, changed))
    return path


def test_hanging_read_ends_at_the_stall_limit_and_the_next_one_is_right(tmp_path, video) -> None:
    worker.use_worker(1.0)
    path = hang(tmp_path / "f")
    started = time.monotonic()
    with pytest.raises(VideoError) as caught:
        numbers(path, 0.0, 0.25)
    assert 1.0 <= time.monotonic() - started < 5.0
    assert caught.value.code == "timeout" and path in caught.value.message and "1 s" in caught.value.message
    worker.use_worker(STALL_SECONDS)
    assert numbers(video, 1.0, 2.0) == [4, 8]


def test_decode_that_makes_progress_may_last_longer_than_the_stall_limit(tmp_path) -> None:
    path = str(write_long_film(tmp_path / "v.mp4", 3 * 3600 * 25, fps=25, num_groups=1))
    worker.use_worker(0.5)
    probe(path)
    started = time.monotonic()
    seconds = tuple(np.linspace(0, 3 * 3600 - 1, 768).tolist())
    frames = decode_clip(Clip(path, 0.0, 3 * 3600.0, seconds, 28, 56, 1.0)).numpy()
    assert time.monotonic() - started > 0.5 * 1.125
    assert [read_number(frame) for frame in frames[::50]] == [int(t * 25 + 1e-6) % 250 for t in seconds[::50]]


def test_worker_that_stalls_in_mid_decode_is_killed(tmp_path, started) -> None:
    """It has shown progress before."""
    path = str(write_folder(tmp_path / "f", range(400), size=(480, 640)))
    probe(path)
    worker.decoder().stall_seconds = 0.3

    def stop() -> None:
        time.sleep(0.15)
        os.kill(started, signal.SIGSTOP)

    threading.Thread(target=stop).start()
    with pytest.raises(VideoError) as caught:
        decode_clip(Clip(path, 0.0, 100.0, tuple(steady(400, 4)), 28, 56, 1.0))
    assert caught.value.code == "timeout" and started not in children()


@pytest.fixture
def alarms(monkeypatch) -> list[float]:
    """The seconds of every alarm that the watchdog sets, none of which rings."""
    set_alarms: list[float] = []
    clock = SimpleNamespace(ITIMER_REAL=0, setitimer=lambda which, seconds: set_alarms.append(seconds))
    monkeypatch.setattr(watchdog, "signal", clock)
    monkeypatch.setattr(watchdog, "_watch", None)
    return set_alarms


def test_time_allowed_is_in_proportion_to_the_frames(alarms, monkeypatch) -> None:
    now = [100.0]
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: now[0])
    reports: list[float] = []
    watchdog.start(8.0, lambda: reports.append(now[0]))
    num_frames, pixels = 1000, 1920 * 1080
    watchdog.allow_frames("v.mp4", num_frames, pixels)
    allowed = 8 + num_frames * (watchdog.SECONDS_PER_FRAME + watchdog.SECONDS_PER_MEGAPIXEL * pixels / 1e6)
    assert allowed > 10 * num_frames * 0.02  # of a slow core
    for step in range(int(allowed)):
        now[0] = 100.0 + step
        watchdog.progress()
    assert len(reports) == len(alarms) - 1 and allowed / 3 < len(reports) < allowed
    assert set(alarms) == {watchdog.longest_silence(8.0)}
    now[0] = 100.1 + allowed
    with pytest.raises(VideoError, match=r"v\.mp4 takes too long") as caught:
        watchdog.progress()
    assert caught.value.code == "timeout"


def test_unstarted_watchdog_sets_no_alarm(alarms) -> None:
    watchdog.allow_frames("v.mp4", 0, 0)
    watchdog.progress()
    assert alarms == []


def test_slow_index_is_cut_off_and_leaves_no_process_behind(tmp_path, started) -> None:
    os.kill(started, signal.SIGSTOP)
    worker.decoder().stall_seconds = 0.2
    with pytest.raises(VideoError, match=r"for 0\.2 s without progress"):
        probe(str(write_video(tmp_path / "v.mp4", steady(8, 4))))
    assert started not in children()


def test_crash_is_named_and_the_next_read_is_right(tmp_path, video, started) -> None:
    os.kill(started, signal.SIGSTOP)
    path = str(write_video(tmp_path / "other.mp4", steady(8, 4)))

    def crash() -> None:
        time.sleep(0.2)
        os.kill(started, signal.SIGSEGV)
        os.kill(started, signal.SIGCONT)

    threading.Thread(target=crash).start()
    with pytest.raises(VideoError) as caught:
        probe(path)
    assert caught.value.code == "crashed" and path in caught.value.message and "SIGSEGV" in caught.value.message
    assert numbers(video, 1.0, 2.0) == [4, 8]


def test_worker_that_was_killed_while_idle_is_replaced(video, started) -> None:
    os.kill(started, signal.SIGKILL)
    while Path(f"/proc/{started}/stat").read_text().split()[2] != "Z":
        time.sleep(0.01)
    assert numbers(video, 1.0, 2.0) == [4, 8]


def test_interrupted_read_leaves_no_stale_reply(tmp_path, video, started) -> None:
    os.kill(started, signal.SIGSTOP)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(KeyboardInterrupt):
            probe(str(write_video(tmp_path / "v.mp4", steady(8, 4))))
    finally:
        signal.signal(signal.SIGALRM, before)
    assert numbers(video, 1.0, 2.0) == [4, 8]


def test_relative_paths_follow_the_working_folder(tmp_path, monkeypatch) -> None:
    worker.use_worker(STALL_SECONDS)
    for name, count in (("a", 4), ("b", 8)):
        (tmp_path / name).mkdir()
        write_video(tmp_path / name / "v.mp4", steady(count, 4))
        monkeypatch.chdir(tmp_path / name)
        assert numbers("v.mp4", 0.0, (count - 1) / 4) == [0, count - 1]


def test_file_that_changed_is_read_again(tmp_path) -> None:
    worker.use_worker(STALL_SECONDS)
    path = write_video(tmp_path / "v.mp4", steady(8, 4))
    assert probe(str(path)).num_frames == 8
    write_video(path, steady(12, 4))
    assert probe(str(path)).num_frames == 12 and numbers(str(path), 0.0, 2.75) == [0, 11]


def test_threads_share_the_workers(video) -> None:
    worker.use_worker(STALL_SECONDS, num_workers=2)
    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(lambda i: numbers(video, i / 4, (i + 1) / 4), range(60)))
    assert results == [[i, i + 1] for i in range(60)]
    assert sum(slot.is_alive() for slot in worker.decoder()._idle.queue if slot is not None) == 2


def test_forked_process_reads_by_itself(video, started) -> None:
    """With torch's threads running and a worker in use, as a loader that forks finds it."""
    torch.randn(400, 400) @ torch.randn(400, 400)
    child = os.fork()
    if child == 0:
        os._exit(0 if all(numbers(video, i / 4, (i + 1) / 4) == [i, i + 1] for i in range(20)) else 1)
    assert all(numbers(video, i / 4, (i + 1) / 4) == [i, i + 1] for i in range(20))
    assert os.waitpid(child, 0)[1] == 0
    assert started in children()


def test_process_forked_while_a_read_is_under_way_reads_too(tmp_path, video, started) -> None:
    other = str(write_video(tmp_path / "v.mp4", steady(8, 4)))
    os.kill(started, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(probe, other)
        time.sleep(0.2)
        child = os.fork()
        if child == 0:
            signal.alarm(30)
            os._exit(0 if numbers(video, 1.0, 2.0) == [4, 8] else 1)
        status = os.waitpid(child, 0)[1]
        os.kill(started, signal.SIGCONT)
        assert reading.result().num_frames == 8
    assert status == 0


def test_worker_of_a_killed_run_ends_even_if_it_hangs(tmp_path) -> None:
    code = """
import sys, threading
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from test_video_worker import children, hang, numbers
from videoseek.video import worker
worker.use_worker(1.5)
path = hang(Path(sys.argv[1]))
print(*children(), flush=True)
numbers(path, 0.0, 0.25)
"""
    here = Path(__file__)
    arguments = [sys.executable, "-c", code, str(tmp_path / "f"), str(here.parent), str(here.parents[2])]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as run:
        pid = int(run.stdout.readline())
        time.sleep(0.3)  # the read is under way
        run.kill()
    until = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z":
        assert time.monotonic() < until, "the worker outlives its run"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("stall", "workers", "cores"), [(-1.0, 1, 1), (float("nan"), 1, 1), (float("inf"), 1, 1), (1.0, 0, 1), (1.0, 1, 0)]
)
def test_odd_settings_are_refused(stall, workers, cores) -> None:
    with pytest.raises(ValueError, match="stall limit"):
        worker.use_worker(stall, workers, cores)


def test_cores_are_shared_out_over_the_decodes_under_way() -> None:
    pool = worker.WorkerPool(STALL_SECONDS, num_workers=6, num_cores=6)
    assert [pool.decode_threads(num_busy) for num_busy in (1, 2, 3, 4, 6)] == [6, 3, 2, 1, 1]
    assert worker.WorkerPool(STALL_SECONDS, 2, num_cores=64).decode_threads(1) == worker.MAX_DECODE_THREADS


def test_pixels_are_the_same_with_more_cores(video) -> None:
    before = decode_clip(clip(video, *steady(20, 1)))
    worker.use_worker(STALL_SECONDS, num_workers=2, num_cores=4)
    assert torch.equal(decode_clip(clip(video, *steady(20, 1))), before)


def test_zero_and_none_read_in_this_process(video) -> None:
    before = children()
    for deadline in (0, 0.0, None):
        worker.use_worker(deadline)
        assert numbers(video, 1.0, 2.0) == [4, 8]
    assert children() == before

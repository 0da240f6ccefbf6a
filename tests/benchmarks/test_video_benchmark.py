"""`pytest --benchmark`: what a crop costs beside decoding the whole file, and what a worker adds to it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest

from videoseek.video.decode import probe
from videoseek.video.worker import Decoder, LocalDecoder, WorkerPool, _Worker

FPS, MINUTES = 25, 10
HEIGHT, WIDTH, KEYFRAME_DISTANCE = 240, 320, 250
NUM_FRAMES = 8
MIN_RATIO = 15.0


@pytest.fixture(scope="module")
def ten_minutes(tmp_path_factory: pytest.TempPathFactory) -> str:
    """H.264 of moving stripes with some noise, so that frames cost what filmed ones do."""
    path = tmp_path_factory.mktemp("benchmark") / "ten_minutes.mp4"
    noise = np.random.default_rng(0).integers(0, 24, (HEIGHT * 3 // 2, WIDTH), np.uint8)
    columns = np.arange(WIDTH)
    with av.open(str(path), "w") as container:
        options = {"preset": "superfast", "g": str(KEYFRAME_DISTANCE), "keyint_min": str(KEYFRAME_DISTANCE)}
        stream = container.add_stream("libx264", rate=FPS, options={**options, "sc_threshold": "0"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number in range(FPS * 60 * MINUTES):
            planes = np.roll(noise, number, axis=0) + 64
            planes[:HEIGHT] += ((columns + 3 * number) % 128).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(planes, format="yuv420p")))
        container.mux(stream.encode(None))
    return str(path)


def seconds_of(work: Callable[[], object], repeats: int) -> float:
    """Median over the repeats."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def whole_file(path: str) -> int:
    """Every frame decoded in order, none converted: the least that a reader without an index does for a crop."""
    with av.open(path) as container:
        container.streams.video[0].thread_type = "NONE"
        return sum(1 for _ in container.decode(video=0))


@pytest.mark.benchmark
@pytest.mark.timeout(900)
def test_crop_against_whole_file(ten_minutes: str, capsys: pytest.CaptureFixture[str]) -> None:
    info = probe(ten_minutes)
    assert whole_file(ten_minutes) == info.num_frames
    pool = WorkerPool(60.0, 1)
    rows = {"whole file": seconds_of(lambda: whole_file(ten_minutes), 3)}
    starts = np.random.default_rng(1).uniform(0, info.duration_seconds - 4, 11).tolist()
    for name, decoder in (("crop here", LocalDecoder()), ("crop in a worker", pool)):
        decoder.index(ten_minutes)
        crops = iter([partial(crop, decoder, ten_minutes, start) for start in starts])
        rows[name] = seconds_of(lambda crops=crops: next(crops)(), len(starts))  # type: ignore[misc]
    pool.close()
    rows["index, once a file"] = seconds_of(lambda: fresh_index(ten_minutes), 3)
    rows["start of a worker"] = seconds_of(lambda: _Worker().kill(), 5)
    with capsys.disabled():
        print(f"\n\n{NUM_FRAMES} frames of 4 s from {MINUTES} minutes of {WIDTH} x {HEIGHT} at {FPS} fps")
        for name, seconds in rows.items():
            print(f"{name:20} {1000 * seconds:9.1f} ms {rows['whole file'] / seconds:8.1f} x")
    assert rows["whole file"] / rows["crop here"] >= MIN_RATIO
    assert rows["whole file"] / rows["crop in a worker"] >= MIN_RATIO


def crop(decoder: Decoder, path: str, start_seconds: float) -> None:
    times = [start_seconds + 0.5 * i for i in range(NUM_FRAMES)]
    assert decoder.frames(path, times, 252, 336).shape == (NUM_FRAMES, 252, 336, 3)


def fresh_index(path: str) -> None:
    Path(path).touch()
    probe(path)

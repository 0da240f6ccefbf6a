"""`pytest --benchmark`: what a crop costs beside the whole file, in a worker, and beside other readers of video."""

from __future__ import annotations

import importlib
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest
from support.long_film import repeat_packets

from videoseek.video.decode import probe
from videoseek.video.reader import decode_frames, read_index
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


#: Height, width, frames, and size at which the frames are wanted.
FILMS = {
    "3 h of 360p": (360, 640, 3 * 3600 * FPS, (252, 448)),
    "10 min of 1080p": (1080, 1920, 600 * FPS, (252, 448)),
}


def write_film(path: Path, height: int, width: int, num_frames: int) -> str:
    """Moving stripes with a little noise, two B-frames, a keyframe every 250 frames."""
    cycle = path.with_name("cycle.mp4")
    noise = np.random.default_rng(0).integers(0, 6, (height * 3 // 2, width), np.uint8)
    columns = np.arange(width)
    parameters = f"keyint={KEYFRAME_DISTANCE}:min-keyint={KEYFRAME_DISTANCE}:scenecut=0:bframes=2:b-adapt=0"
    with av.open(str(cycle), "w") as container:
        stream = container.add_stream(
            "libx264", rate=FPS, options={"preset": "superfast", "crf": "28", "x264-params": parameters}
        )
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(KEYFRAME_DISTANCE):
            planes = np.roll(noise, number, axis=0) + 64
            planes[:height] += ((columns + 3 * number) % 128).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(planes, format="yuv420p")))
        container.mux(stream.encode(None))
    repeat_packets(cycle, path, num_frames, FPS)
    return str(path)


def by_videoseek(path: str, frames: Sequence[int], size: tuple[int, int]) -> int:
    index = read_index(path)
    return len(decode_frames(path, index.seconds(list(frames)).tolist(), *size))


def by_pyav(path: str, frames: Sequence[int], size: tuple[int, int]) -> int:
    """Seek to each frame's time and decode up to it."""
    num_frames = 0
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        for number in frames:
            stamp = round(number / FPS / stream.time_base)
            container.seek(stamp, stream=stream)
            frame = next(frame for frame in container.decode(stream) if frame.pts >= stamp)
            num_frames += len(frame.reformat(size[1], size[0], "rgb24", threads=1).to_ndarray()) == size[0]
    return num_frames


def by_opencv(path: str, frames: Sequence[int], size: tuple[int, int]) -> int:
    cv2 = importlib.import_module("cv2")
    cv2.setNumThreads(1)
    capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    num_frames = 0
    for number in frames:
        capture.set(cv2.CAP_PROP_POS_FRAMES, number)
        read, image = capture.read()
        num_frames += read and len(cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)) == size[0]
    return num_frames


def by_decord(path: str, frames: Sequence[int], size: tuple[int, int]) -> int:
    decord = importlib.import_module("decord")
    reader = decord.VideoReader(path, num_threads=1, width=size[1], height=size[0])
    return len(reader.get_batch(list(frames)).asnumpy())


READERS = {"videoseek": (by_videoseek, "av"), "pyav": (by_pyav, "av")}
READERS |= {"opencv": (by_opencv, "cv2"), "decord": (by_decord, "decord")}


def cpu_seconds_of(work: Callable[[], object]) -> float:
    """Of all threads: wall seconds say little on a busy machine."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    work()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.fixture(scope="module", params=FILMS)
def film(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Name and path."""
    height, width, num_frames, _ = FILMS[request.param]
    return request.param, write_film(tmp_path_factory.mktemp("film") / "film.mp4", height, width, num_frames)


@pytest.mark.benchmark
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", READERS)
def test_cpu_seconds_beside_other_readers(
    film: tuple[str, str], name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read, library = READERS[name]
    pytest.importorskip(library, reason=f"{library} is not installed")
    label, path = film
    monkeypatch.setenv("VIDEOSEEK_CACHE", str(Path(path).parent))
    *_, num_frames, size = FILMS[label]
    spread = np.linspace(0, num_frames - 1, 64).round().astype(int).tolist()
    crop = [num_frames // 2 + 70 + FPS // 2 * i for i in range(NUM_FRAMES)]
    opening = cpu_seconds_of(lambda: read(path, [0], size))
    rows = {f"{len(frames)} frames": cpu_seconds_of(partial(read, path, frames, size)) for frames in (spread, crop)}
    with capsys.disabled():
        figures = ", ".join(f"{what} {seconds:.2f}" for what, seconds in rows.items())
        print(f"\n{label:16} {name:10} CPU seconds: first opening {opening:.2f}, {figures}")
    assert read(path, crop, size) == NUM_FRAMES

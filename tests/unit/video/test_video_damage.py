"""Mutated files of every kind, read by a worker: each ends as frames or as a named error, within the limits."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from support.video_samples import KINDS

from videoseek.config import VideoConfig
from videoseek.video import worker
from videoseek.video.decode import decode_clip, probe
from videoseek.video.errors import CODES, VideoError
from videoseek.video.quotas import crop_clip, overview_clip

NUM_MUTANTS = int(os.environ.get("VIDEOSEEK_MUTANTS", 5000 if os.environ.get("VIDEOSEEK_FULL") else 500))
STALL_SECONDS = 10.0
LIMITS = VideoConfig(max_frames=8, overview_tokens=64, coarse_tokens=64)
FILES = [name for name, kind in KINDS.items() if not kind.folder_fps and name != "four_hours"]
HEADER_BYTES = 600


@pytest.fixture(autouse=True)
def _worker() -> Iterator[None]:
    worker.use_worker(STALL_SECONDS)
    yield
    worker.use_worker(None)


def flip(data: bytearray, rng: np.random.Generator, end: int) -> bytearray:
    for position in rng.integers(0, end, int(rng.integers(1, 30))):
        data[position] ^= 1 << int(rng.integers(8))
    return data


def erase(data: bytearray, rng: np.random.Generator) -> bytearray:
    start, length = int(rng.integers(len(data))), int(rng.integers(1, len(data) // 4))
    data[start : start + length] = bytes(len(data[start : start + length]))
    return data


def remove(data: bytearray, rng: np.random.Generator) -> bytearray:
    start, length = int(rng.integers(len(data))), int(rng.integers(1, len(data) // 4))
    del data[start : start + length]
    return data


MUTATIONS: dict[str, Callable[[bytearray, np.random.Generator], bytearray]] = {
    "flip": lambda data, rng: flip(data, rng, len(data)),
    "flip_header": lambda data, rng: flip(data, rng, min(HEADER_BYTES, len(data))),
    "flip_tail": lambda data, rng: flip(data[::-1], rng, min(4 * HEADER_BYTES, len(data)))[::-1],
    "truncate": lambda data, rng: data[: int(rng.integers(len(data)))],
    "erase": erase,
    "remove": remove,
}


def outcome(path: Path) -> str:
    """`frames`, or the error's code. The window of the crop is the video's middle half."""
    try:
        info = probe(str(path))
        duration = info.duration_seconds
        for clip in (
            overview_clip(info, LIMITS),
            crop_clip(info, duration / 4, 3 * duration / 4, "coarse", LIMITS),
        ):
            assert decode_clip(clip).shape == (len(clip.frame_seconds), clip.height, clip.width, 3)
    except VideoError as error:
        assert error.code in CODES and str(path) in error.message
        return error.code
    return "frames"


@pytest.mark.timeout(3600)
def test_mutants_end_as_frames_or_as_named_errors(tmp_path, tmp_path_factory, record_property) -> None:
    sound = {name: Path(KINDS[name].write(tmp_path_factory.mktemp(name))) for name in FILES}
    rng = np.random.default_rng(int(os.environ.get("VIDEOSEEK_SEED", 1)))
    outcomes: Counter[str] = Counter()
    for number in range(NUM_MUTANTS):
        name = FILES[number % len(FILES)]
        mutation = list(MUTATIONS)[number // len(FILES) % len(MUTATIONS)]
        path = tmp_path / f"{number}_{name}_{mutation}{sound[name].suffix}"
        path.write_bytes(MUTATIONS[mutation](bytearray(sound[name].read_bytes()), rng))
        started = time.monotonic()
        ended = outcome(path)
        # Three reads, each within the stall limit and the time that it takes to start another worker.
        assert time.monotonic() - started < 3 * (STALL_SECONDS + 5), path.name
        assert ended not in ("timeout", "crashed"), path.name
        outcomes[ended] += 1
        path.unlink()
    for code, count in outcomes.items():
        record_property(code, count)
    print(dict(outcomes))
    assert {"frames", "not_video", "decode_failed"} <= set(outcomes)

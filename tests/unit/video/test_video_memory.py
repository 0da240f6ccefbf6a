"""Memory stays flat over thousands of crops, here and in a worker."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from support.video_samples import KINDS, steady, write_video, x264

from videoseek.types import Clip
from videoseek.video import worker
from videoseek.video.decode import decode_clip, probe
from videoseek.video.errors import VideoError

NUM_CROPS = 10_000 if os.environ.get("VIDEOSEEK_FULL") else 600
WARM_UP = 200
MAX_GROWTH_MIB = 50
#: One frame of each held back for good would show: 600 x 230 kB.
LARGE = (240, 320)


def resident_mib(pid: int | str) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("stall_seconds", [None, 60.0], ids=["here", "worker"])
def test_repeated_reads_keep_memory_constant(tmp_path_factory, stall_seconds) -> None:
    names = ("webm_vp9", "webm_av1", "hevc", "transport_stream", "avi_mpeg4", "frame_folder", "truncated_tail")
    paths = [KINDS[name].write(tmp_path_factory.mktemp(name)) for name in names]
    folder = tmp_path_factory.mktemp("large")
    large = [write_video(folder / f"{i}.mp4", steady(60, 10), size=LARGE, options=x264(12)) for i in range(4)]
    paths += [str(path) for path in large]
    (folder / "broken.mp4").write_bytes(large[0].read_bytes()[:2000])
    worker.use_worker(stall_seconds)
    rng = np.random.default_rng(0)
    resident: list[float] = []
    try:
        for number in range(WARM_UP + NUM_CROPS):
            path = paths[number % len(paths)]
            duration = probe(path).duration_seconds
            times = tuple(sorted(rng.uniform(0, duration, 4).tolist()))
            assert decode_clip(Clip(path, 0.0, duration, times, 112, 168, 1.0)).shape == (4, 112, 168, 3)
            with pytest.raises(VideoError):
                probe(str(folder / "broken.mp4"))
            if number >= WARM_UP:
                pids = ["self"]
                if isinstance(pool := worker.decoder(), worker.WorkerPool):
                    pids.append(str(pool._idle.queue[0]._process.pid))
                resident.append(sum(resident_mib(pid) for pid in pids))
    finally:
        worker.use_worker(None)
    growth = max(resident) - resident[0]
    print(f"growth {growth:.1f} MiB over {NUM_CROPS} crops, from {resident[0]:.0f} MiB")
    assert growth < MAX_GROWTH_MIB

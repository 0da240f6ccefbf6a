"""Starts the decode workers of a training process, one worker for each core of the process."""

from __future__ import annotations

import atexit
import os
from pathlib import Path

from videoseek.config import VideoConfig
from videoseek.video import worker
from videoseek.video.decode import FRAME_CACHE, cancel_prefetch, keep_overviews
from videoseek.video.overviews import OverviewStore


def start_video_service(video: VideoConfig, num_ranks_on_this_machine: int) -> None:
    """Installs the caches and the pool of decode workers for this process, with a worker for each core of the process.

    Workers start at the first request, and always end with this process. Raises UsageError for an unusable folder.
    """
    num_cores = cores_per_rank(num_ranks_on_this_machine)
    FRAME_CACHE.resize(video.cache_megabytes * 2**20)
    folder, num_bytes = video.overview_cache, int(video.overview_cache_gigabytes * 1e9)
    keep_overviews(None if folder is None else OverviewStore(Path(folder), num_bytes))
    worker.use_worker(video.stall_seconds, num_workers=num_cores, num_cores=num_cores)
    # Otherwise a decode under way at the exit would run to the end.
    atexit.unregister(stop_video_service)
    atexit.register(stop_video_service)


def stop_video_service() -> None:
    """Ends all decode workers at once, even busy workers. This process reads videos itself from then on."""
    cancel_prefetch()
    worker.stop_workers()


def cores_per_rank(num_ranks: int) -> int:
    """Returns this process's even share of the usable cores among `num_ranks` processes of a machine, at least 1."""
    if num_ranks < 1:
        raise ValueError(f"num_ranks is {num_ranks}; it must be at least 1")
    return max(1, len(os.sched_getaffinity(0)) // num_ranks)

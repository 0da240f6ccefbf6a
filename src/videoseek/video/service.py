"""The decode workers of a training process: as many as its part of the machine's cores."""

from __future__ import annotations

import atexit
import os

from videoseek.config import VideoConfig
from videoseek.video import worker
from videoseek.video.decode import FRAME_CACHE, cancel_prefetch


def start_video_service(video: VideoConfig, num_ranks_on_this_machine: int) -> None:
    """Installs the cache and the pool of decode workers for this process, one worker for each of its cores.

    Workers start at first need. They end with this process, however it ends.
    """
    num_cores = cores_per_rank(num_ranks_on_this_machine)
    FRAME_CACHE.resize(video.cache_megabytes * 2**20)
    worker.use_worker(video.stall_seconds, num_workers=num_cores, num_cores=num_cores)
    # Without this a decode that is under way at the exit would go on to its end.
    atexit.unregister(stop_video_service)
    atexit.register(stop_video_service)


def stop_video_service() -> None:
    """Ends all decode workers at once, those at work too; videos are read in this process from then on."""
    cancel_prefetch()
    worker.stop_workers()


def cores_per_rank(num_ranks: int) -> int:
    """The cores that this process may use, shared out evenly over the processes of a machine; at least 1."""
    if num_ranks < 1:
        raise ValueError(f"num_ranks is {num_ranks}; it must be at least 1")
    return max(1, len(os.sched_getaffinity(0)) // num_ranks)

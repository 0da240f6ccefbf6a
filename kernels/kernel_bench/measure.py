"""Timing on a GPU: contestants take turns in one process, the cache is flushed before each, clocks are left alone."""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch

WARM_UP_SECONDS, MAX_SAMPLES, MAX_SECONDS, MIN_SAMPLES = 0.3, 100, 1.0, 5
_FLUSH_BYTES = 256 * 2**20
#: About a millisecond in which the GPU is kept busy, so that the host has queued a call before the clock starts.
_HEAD_START_CYCLES = 2_000_000


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds: median, 20th and 80th percentile of num_samples; peak_bytes above what was allocated before."""

    median_ms: float
    p20_ms: float
    p80_ms: float
    num_samples: int
    peak_bytes: int


def interleave(calls: Mapping[str, Callable[[], object]]) -> tuple[dict[str, Timing], dict[str, str]]:
    """Times each call by CUDA events, in rounds, until it has MAX_SAMPLES or has used MAX_SECONDS.

    Returns the timings, and {name: error} of calls that raised; their errors do not stop the others.
    """
    flush = torch.empty(_FLUSH_BYTES, dtype=torch.int8, device="cuda")
    samples: dict[str, list[float]] = {name: [] for name in calls}
    peaks: dict[str, int] = {}
    faults: dict[str, str] = {}

    for name, call in calls.items():
        with noting(faults, name):
            peaks[name] = _peak_bytes(call)
            _warm_up(call, flush)
    waiting = [name for name in calls if name not in faults]
    while waiting:
        for name in waiting:
            with noting(faults, name):
                samples[name].append(_milliseconds(calls[name], flush))
        waiting = [name for name in waiting if name not in faults and not _enough(samples[name])]
    timings = {name: _summary(taken, peaks[name]) for name, taken in samples.items() if name not in faults}
    return timings, faults


def time_one(call: Callable[[], object]) -> Timing:
    """Times one call alone; its errors are raised."""
    flush = torch.empty(_FLUSH_BYTES, dtype=torch.int8, device="cuda")
    peak_bytes = _peak_bytes(call)
    _warm_up(call, flush)
    taken: list[float] = []
    while not _enough(taken):
        taken.append(_milliseconds(call, flush))
    return _summary(taken, peak_bytes)


@contextmanager
def noting(faults: dict[str, str], name: str) -> Iterator[None]:
    """Catches any error of the block and puts it into faults[name], in one line that fits a table."""
    try:
        yield
    except Exception as error:  # a contestant's error is its result
        faults[name] = f"{type(error).__name__}: {str(error).strip()}".split("\n")[0][:200]
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # memory of the failed call


def gpu_state() -> dict[str, str]:
    """Returns clocks, temperature and power of the GPU now, by nvidia-smi: a hot GPU lowers its clocks."""
    fields = ["clocks.sm", "clocks.mem", "temperature.gpu", "power.draw"]
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return {"not run": f"nvidia-smi: {error}"[:200]}
    return dict(zip(fields, (value.strip() for value in done.stdout.splitlines()[0].split(",")), strict=True))


def _enough(taken: list[float]) -> bool:
    return len(taken) >= MIN_SAMPLES and (len(taken) >= MAX_SAMPLES or sum(taken) >= 1000 * MAX_SECONDS)


def _warm_up(call: Callable[[], object], flush: torch.Tensor) -> None:
    stop = time.perf_counter() + WARM_UP_SECONDS
    while time.perf_counter() < stop:
        _milliseconds(call, flush)


def _milliseconds(call: Callable[[], object], flush: torch.Tensor) -> float:
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    flush.zero_()
    torch.cuda._sleep(_HEAD_START_CYCLES)
    start.record()
    call()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop)


def _peak_bytes(call: Callable[[], object]) -> int:
    """Returns the peak of the second call: the first also pays for compiling."""
    for _ in range(2):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
    return peak


def _summary(taken: list[float], peak_bytes: int) -> Timing:
    fifths = statistics.quantiles(taken, n=5)
    return Timing(statistics.median(taken), fifths[0], fifths[3], len(taken), peak_bytes)

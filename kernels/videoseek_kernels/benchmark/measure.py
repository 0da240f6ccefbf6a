"""Timing on a GPU: contestants take turns in one process, the cache is flushed before each, clocks are left alone."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

WARM_UP, MAX_SAMPLES, MAX_SECONDS, MIN_SAMPLES = 20, 100, 3.0, 5
_FLUSH_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds: median, 20th and 80th percentile of num_samples; peak_bytes above what was allocated before."""

    median_ms: float
    p20_ms: float
    p80_ms: float
    num_samples: int
    peak_bytes: int


def interleave(calls: Mapping[str, Callable[[], object]]) -> dict[str, Timing]:
    """Time each call by CUDA events, in rounds, until it has MAX_SAMPLES or has used MAX_SECONDS."""
    flush = torch.empty(_FLUSH_BYTES, dtype=torch.int8, device="cuda")
    samples: dict[str, list[float]] = {name: [] for name in calls}
    peaks = {name: _peak_bytes(call) for name, call in calls.items()}
    for call in calls.values():
        spent = 0.0
        for _ in range(WARM_UP):
            if spent < 1000 * MAX_SECONDS:
                spent += _milliseconds(call, flush)
    waiting = set(calls)
    while waiting:
        for name in [name for name in calls if name in waiting]:
            taken = samples[name]
            taken.append(_milliseconds(calls[name], flush))
            enough = len(taken) >= MAX_SAMPLES or sum(taken) >= 1000 * MAX_SECONDS
            if enough and len(taken) >= MIN_SAMPLES:
                waiting.remove(name)
    return {name: _summary(taken, peaks[name]) for name, taken in samples.items()}


def _milliseconds(call: Callable[[], object], flush: torch.Tensor) -> float:
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    flush.zero_()
    start.record()
    call()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop)


def _peak_bytes(call: Callable[[], object]) -> int:
    """Of the second call: the first also pays for compiling."""
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

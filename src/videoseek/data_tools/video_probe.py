"""Opens every video once, in parallel, for the video's facts and for the lengths of episodes about the video."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, as_completed, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from threading import Lock
from typing import Any, TypeVar

from videoseek.data_tools.inspect_video import VideoFacts, inspect_video
from videoseek.data_tools.lengths import Lengths, measure_lengths
from videoseek.data_tools.resumable_cache import ResumableCache
from videoseek.rollout.environment import Environment
from videoseek.samples.readers.rows import Problem
from videoseek.samples.schema import sample_to_record
from videoseek.types import Sample
from videoseek.video.decode import probe
from videoseek.video.errors import VideoError
from videoseek.video.index import VideoInfo
from videoseek.video.reader import source_stamp
from videoseek.video.worker import use_worker

Item = TypeVar("Item")
Result = TypeVar("Result")

#: Codes with a cause perhaps in the machine instead of the file: the next run inspects the video again.
_TRANSIENT = frozenset(("missing_file", "timeout", "crashed"))
#: The length of a sample: the counts, the problem of an unfit video, or None (see `measure_lengths`).
Length = Lengths | Problem | None


@dataclass(frozen=True, slots=True)
class Measurement:
    """The facts about a video, and the lengths of the video's samples in the order of the samples."""

    facts: VideoFacts
    lengths: tuple[Length, ...]


class VideoProbe:
    """Measures videos through a cache of results for unchanged files. Safe to use from threads.

    With `decode`, the probe decodes frames besides reading the index. `environment` holds a PlannedCrop.
    """

    def __init__(self, environment: Environment, cache: ResumableCache, *, decode: bool) -> None:
        self._environment = environment
        self._cache = cache
        self._decode = decode
        self._tokenizer_lock = Lock()
        self._protocol = _digest(
            [
                environment.tool.limits.shown_by(),
                environment.fmt.name,
                environment.fmt.style,
                environment.max_turns,
                environment.vocabulary.tokenizer.backend_tokenizer.to_str(),
            ]
        )

    def measure(self, video: str, samples: Sequence[Sample]) -> Measurement:
        """Measures a video and the samples about the video. Faults of the file become problems, not exceptions."""
        try:
            stamp = source_stamp(video)
        except VideoError as error:
            facts = VideoFacts(None, (Problem(error.code, error.message),))
            return Measurement(facts, (None,) * len(samples))
        file_key = f"{video}|{stamp[0]}|{stamp[1]}"
        facts = self._facts(video, file_key)
        if facts.info is None:
            return Measurement(facts, (None,) * len(samples))
        return Measurement(facts, tuple(self._length(sample, file_key) for sample in samples))

    def _facts(self, video: str, file_key: str) -> VideoFacts:
        for depth in ("frames",) if self._decode else ("frames", "index"):  # decoding includes reading the index
            if f"{depth}|{file_key}" in self._cache:
                return _facts_from_json(self._cache[f"{depth}|{file_key}"])
        facts = inspect_video(video, decode=self._decode)
        if not _TRANSIENT & {problem.code for problem in facts.problems}:
            self._cache.put(f"{'frames' if self._decode else 'index'}|{file_key}", asdict(facts))
        return facts

    def _length(self, sample: Sample, file_key: str) -> Length:
        record = sample_to_record(sample) | {"id": "", "video": ""}
        key = f"tokens|{file_key}|{_digest([self._protocol, record])}"
        if key in self._cache:
            return _length_from_json(self._cache[key])
        length: Length
        try:
            probe(sample.video)  # outside the lock, because reading the index takes most of the time
            with self._tokenizer_lock:
                length = measure_lengths(sample, self._environment)
        except VideoError as error:
            length = Problem(error.code, error.message)
        self._cache.put(key, None if length is None else asdict(length))
        return length


@contextmanager
def decode_workers(deadline_seconds: float | None, num_workers: int) -> Iterator[None]:
    """Reads videos in other processes inside the `with` block, because a damaged file may hang or crash a process."""
    use_worker(deadline_seconds, num_workers)
    try:
        yield
    finally:
        use_worker(None)


def in_parallel(function: Callable[[Item], Result], items: Iterable[Item], num_threads: int) -> Iterator[Result]:
    """Yields results in the order of completion; draws only enough `items` ahead to keep the threads busy."""
    pending: set[Future[Result]] = set()
    with ThreadPoolExecutor(num_threads) as pool:
        for item in items:
            pending.add(pool.submit(function, item))
            if len(pending) > 2 * num_threads:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        yield from (future.result() for future in as_completed(pending))


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:24]


def _facts_from_json(value: dict[str, Any]) -> VideoFacts:
    info = VideoInfo(**value["info"]) if value["info"] is not None else None
    return VideoFacts(info, tuple(Problem(**problem) for problem in value["problems"]))


def _length_from_json(value: dict[str, Any] | None) -> Length:
    if value is None:
        return None
    return Problem(**value) if "code" in value else Lengths(**value)

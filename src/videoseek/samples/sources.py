"""Turns the sources of a recipe into samples: data files of any known format, or the generated clue world.

A source is `[FORMAT:]PATH[*WEIGHT]` or `clueworld[:NUMBER][*WEIGHT]`. Weights are relative: a sample of a source with
weight 2 is drawn twice as often as one of a source with weight 1. An epoch is the shortest stretch with a draw of every
sample: a sample of the lowest weight comes once, a sample of double weight twice.
"""

from __future__ import annotations

import os
import re
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import overload

import numpy as np

from videoseek.config import UsageError
from videoseek.samples.clueworld import prepare
from videoseek.samples.readers import FORMATS, Reader
from videoseek.samples.readers.rows import Problem, VideoPaths
from videoseek.samples.schema import DataError
from videoseek.types import Sample

#: Generated sources -> the split of training data and the split of held-out data.
GENERATED = {"clueworld": ("train", "heldout"), "clueworld_base": ("base", "base_heldout")}
#: Default number of samples of a generated source: for training, and held out.
DEFAULT_NUM_SAMPLES = (4096, 512)
#: The environment variable for the folder of generated videos, and the default folder.
CACHE_VARIABLE, DEFAULT_CACHE = "VIDEOSEEK_CACHE", "~/.cache/videoseek"
#: With a larger ratio, the order of an epoch would take more memory than the data.
_MAX_WEIGHT_RATIO = 100.0
_REPORT_EVERY = 512
_SOURCE = re.compile(rf"(?:(?P<format>{'|'.join(FORMATS)}):)?(?P<name>.+?)(?:\*(?P<weight>[^*/]*))?")
_GENERATED = re.compile(rf"(?P<name>{'|'.join(GENERATED)})(?::(?P<number>.*))?")


@dataclass(frozen=True, slots=True)
class Source:
    """A data file, or with `is_generated` a name of `GENERATED`.

    `format` None: detected from the file. `num_samples` None: the default of `DEFAULT_NUM_SAMPLES`.
    """

    name: str
    format: str | None = None
    weight: float = 1.0
    is_generated: bool = False
    num_samples: int | None = None


@dataclass(frozen=True, slots=True)
class Loading:
    """How sources become samples.

    `seed` serves generated sources and weighted draws. Calls of recorded turns are rewritten in the form `call_format`
    (None: kept). `skip_bad` passes over bad records instead of raising.
    """

    seed: int
    held_out: bool = False
    paths: VideoPaths = field(default_factory=VideoPaths)
    call_format: str | None = None
    skip_bad: bool = False


def parse_source(text: str) -> Source:
    """Parses a source. Raises UsageError unless the weight and the number of samples are numbers above 0."""
    match = _SOURCE.fullmatch(text)
    if match is None:
        raise UsageError(f"a data source is [FORMAT:]PATH[*WEIGHT], got {text!r}")
    weight = match["weight"]
    try:
        number = 1.0 if weight is None else float(weight)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise UsageError(f"the weight of data source {text!r} must be a number above 0, got {weight!r}")
    generated = _GENERATED.fullmatch(match["name"]) if match["format"] is None else None
    if generated is None:
        return Source(match["name"], match["format"], number)
    digits = generated["number"]
    if digits is not None and (re.fullmatch("[0-9]+", digits) is None or int(digits) < 1):
        raise UsageError(f"the number of samples of data source {text!r} must be at least 1, got {digits!r}")
    num_samples = None if digits is None else int(digits)
    return Source(generated["name"], None, number, is_generated=True, num_samples=num_samples)


def cache_folder() -> Path:
    """Returns the folder of generated videos from the environment variable `CACHE_VARIABLE`."""
    return Path(os.environ.get(CACHE_VARIABLE) or DEFAULT_CACHE).expanduser()


class SampleFile(Sequence[Sample]):
    """The good samples of a data file. `scan` keeps the offsets of the samples; each access parses a sample.

    16 bytes per sample stay in memory. `bad` holds the place and the problem of each skipped record.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._offsets, self._numbers = array("q"), array("q")
        self.bad: list[tuple[str, Problem]] = []

    def scan(self, ids: set[str], *, skip_bad: bool, on_progress: Callable[[int, int], None] | None) -> None:
        """Reads the whole file. `ids` holds the ids of earlier files; the method adds the ids of the own file.

        Raises DataError for the first bad record unless `skip_bad`, and if all records are bad.
        """
        size = self._reader.records.size
        for row in self._reader.rows(ids):
            if row.problem is None:
                self._offsets.append(row.offset)
                self._numbers.append(row.number)
            elif skip_bad:
                self.bad.append((row.where, row.problem))
            else:
                raise DataError(f"{row.where}: {row.problem.message}")
            if on_progress is not None and row.number % _REPORT_EVERY == 0:
                on_progress(row.offset, size)
        if on_progress is not None:
            on_progress(size, size)
        self._require_samples()

    def drop(self, problem_of: Callable[[Sample], Problem | None]) -> None:
        """Moves the samples with a problem to `bad`. Raises DataError when no sample is left."""
        offsets, numbers = array("q"), array("q")
        for index, (offset, number) in enumerate(zip(self._offsets, self._numbers, strict=True)):
            problem = problem_of(self[index])
            if problem is None:
                offsets.append(offset)
                numbers.append(number)
            else:
                self.bad.append((self._reader.where(number), problem))
        self._offsets, self._numbers = offsets, numbers
        self._require_samples()

    def _require_samples(self) -> None:
        if not self._offsets and self.bad:
            where, problem = self.bad[0]
            raise DataError(f"{where}: {problem.message}; none of the file's {len(self.bad)} records can be used")
        if not self._offsets:
            raise DataError(f"data file {str(self._reader.path)!r} holds no samples")

    def __len__(self) -> int:
        return len(self._offsets)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._reader.sample(self._offsets[index], self._numbers[index])


class Mixture(Sequence[Sample]):
    """Draws from several files: each file's samples in order, repeated in proportion to the file's weight.

    For a weight between two multiples of the lowest weight, the seed chooses the samples of the last, partial
    repetition.
    """

    def __init__(self, files: Sequence[SampleFile], weights: Sequence[float], seed: int) -> None:
        lowest = min(weights, default=1.0)
        if max(weights, default=1.0) > _MAX_WEIGHT_RATIO * lowest:
            raise UsageError(
                f"weights of data sources may differ by a factor of {_MAX_WEIGHT_RATIO:g} at most, "
                f"got {lowest:g} and {max(weights):g}"
            )
        self.files = list(files)
        self._weights, self._seed = list(weights), seed
        self._arrange()

    def _arrange(self) -> None:
        lowest = min(self._weights, default=1.0)
        self._rest: list[np.ndarray] = []
        lengths = []
        for number, (file, weight) in enumerate(zip(self.files, self._weights, strict=True)):
            times, share = divmod(weight / lowest, 1)
            order = np.random.default_rng([self._seed, number]).permutation(len(file))
            self._rest.append(order[: round(share * len(file))])
            lengths.append(int(times) * len(file) + len(self._rest[-1]))
        self._starts = list(accumulate(lengths, initial=0))

    def drop(self, problem_of: Callable[[Sample], Problem | None]) -> None:
        """Moves samples with a problem to `bad` of the file. Raises DataError when a file has no sample left."""
        for file in self.files:
            file.drop(problem_of)
        self._arrange()

    def distinct(self) -> Mixture:
        """Returns the mixture with every sample once."""
        return Mixture(self.files, [1.0] * len(self.files), self._seed)

    def bad(self) -> Iterator[tuple[str, Problem]]:
        """Yields the place and the problem of each skipped record of all files."""
        return (bad for file in self.files for bad in file.bad)

    def __len__(self) -> int:
        return self._starts[-1]

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        number = bisect_right(self._starts, position) - 1
        file, draw = self.files[number], position - self._starts[number]
        num_whole = self._starts[number + 1] - self._starts[number] - len(self._rest[number])
        return file[draw % len(file)] if draw < num_whole else file[int(self._rest[number][draw - num_whole])]


def load_samples(
    sources: Sequence[str], loading: Loading, on_progress: Callable[[int, int], None] | None = None
) -> Mixture:
    """Returns the samples of all sources. Generates the samples of generated sources first, in `cache_folder`.

    Raises DataError for a missing file and, unless `skip_bad`, for a malformed record or a repeated id. Raises
    UsageError for a malformed source.
    """
    parsed = [parse_source(text) for text in sources]
    if loading.held_out and len({source.weight for source in parsed}) > 1:
        raise UsageError(f"held-out sources have no weights, got {', '.join(sources)}")
    ids: set[str] = set()
    files = []
    for source in parsed:
        file = SampleFile(_reader(source, loading, on_progress))
        file.scan(ids, skip_bad=loading.skip_bad, on_progress=on_progress)
        files.append(file)
    return Mixture(files, [source.weight for source in parsed], loading.seed)


def _reader(source: Source, loading: Loading, on_progress: Callable[[int, int], None] | None) -> Reader:
    if not source.is_generated:
        return Reader(Path(source.name).expanduser(), source.format, loading.paths, loading.call_format)
    split = GENERATED[source.name][loading.held_out]
    num_samples = source.num_samples or DEFAULT_NUM_SAMPLES[loading.held_out]
    path = prepare(cache_folder(), split, num_samples, loading.seed, on_progress)
    return Reader(path, "videoseek", VideoPaths(), loading.call_format)

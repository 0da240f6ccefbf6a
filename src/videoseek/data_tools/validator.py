"""Applies every rule to every record, for the `check` command."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TypeVar

from videoseek.data_tools.inspect_video import content_digest, content_size
from videoseek.data_tools.video_probe import Length, VideoProbe, in_parallel
from videoseek.runtime import Progress
from videoseek.samples.readers import Reader
from videoseek.samples.readers.rows import Problem, VideoPaths
from videoseek.samples.rules import (
    Rules,
    call_problems,
    is_error,
    missing_turns,
    question_problems,
    time_problems,
    turn_problems,
)
from videoseek.samples.schema import DataError
from videoseek.types import Sample
from videoseek.video.errors import VideoError
from videoseek.video.index import VideoInfo
from videoseek.video.reader import source_stamp

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem, the place of the record (`FILE, line 3`), and the record's id (None: unreadable)."""

    where: str
    id: str | None
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Record:
    """The small part of a readable record that stays in memory. `number` counts from 1 over all files."""

    number: int
    where: str
    id: str
    reader: Reader
    offset: int
    number_in_file: int
    is_sound: bool

    def sample(self) -> Sample:
        """Parses the record again."""
        return self.reader.sample(self.offset, self.number_in_file)


class Validator:
    """Collects findings step by step: `read` comes first, then the steps about videos."""

    def __init__(self, rules: Rules, *, need_turns: bool, max_tokens: int) -> None:
        self.num_records = 0
        self.by_video: dict[str, list[Record]] = defaultdict(list)
        self._rules = rules
        self._need_turns = need_turns
        self._max_tokens = max_tokens
        self._findings: list[tuple[int, Finding]] = []
        self._questions: dict[bytes, str] = {}

    def findings(self) -> list[Finding]:
        """Returns all findings in the order of the records."""
        return [finding for _, finding in sorted(self._findings, key=lambda item: item[0])]

    def read(self, files: Iterable[Path], fmt: str | None, paths: VideoPaths) -> None:
        """Applies the rules about texts to every record. Raises UsageError for an unknown format."""
        ids: set[str] = set()
        for path in files:
            try:
                reader = Reader(path, fmt, paths, self._rules.fmt.name)
            except DataError as error:
                self._findings.append((self.num_records, Finding(str(path), None, "unreadable_file", str(error))))
                continue
            self._read_file(reader, ids)

    def _read_file(self, reader: Reader, ids: set[str]) -> None:
        with Progress(f"read {reader.path.name}", reader.records.size) as progress:
            for row in reader.rows(ids):
                self.num_records += 1
                progress.update(row.offset, {"records": self.num_records})
                if (key := reader.records.repeated_key(row.offset)) is not None:
                    message = f"an object holds the key {key!r} twice; its last value is taken"
                    id_ = row.sample.id if row.sample is not None else None
                    self._findings.append((self.num_records, Finding(row.where, id_, "repeated_key", message)))
                if row.problem is not None:
                    problem = row.problem
                    self._findings.append((self.num_records, Finding(row.where, None, problem.code, problem.message)))
                if row.sample is not None:
                    sample = row.sample
                    problems = list(self._record_problems(sample, row.where))
                    is_sound = not any(is_error(problem.code) for problem in problems)
                    record = Record(self.num_records, row.where, sample.id, reader, row.offset, row.number, is_sound)
                    self.by_video[sample.video].append(record)
                    self._add(record, problems)
            progress.update(reader.records.size, {"records": self.num_records})

    def _record_problems(self, sample: Sample, where: str) -> Iterator[Problem]:
        yield from question_problems(sample)
        if self._need_turns:
            yield from missing_turns(sample)
        yield from turn_problems(sample, self._rules)
        if sample.kind == "perception":  # perception asks the same few questions about every video
            return
        question = repr((sample.video, sample.question, sample.options, sample.window))
        first = self._questions.setdefault(hashlib.blake2b(question.encode(), digest_size=16).digest(), where)
        if first != where:
            yield Problem("duplicate_question", f"asks the same about the same video as {first}")

    def find_leaks(self, held_out: Iterable[Path], fmt: str | None, paths: VideoPaths) -> None:
        """Finds records with, byte for byte, the video of a held-out record.

        Unreadable held-out records and videos are findings too, because a leak may hide there. Raises DataError and
        UsageError.
        """
        videos: dict[str, tuple[str, str]] = {}
        for path in held_out:
            for row in Reader(path, fmt, paths).rows(set()):
                if row.problem is not None:
                    self._add_held_out(row.where, None, row.problem)
                if row.sample is not None:
                    videos.setdefault(row.sample.video, (row.where, row.sample.id))
        for video, (where, id_) in videos.items():
            try:
                content_size(video)
            except VideoError as error:
                self._add_held_out(where, id_, Problem(error.code, error.message))
        for video, twin in _same_content(sorted(self.by_video), sorted(videos)):
            problem = Problem("leakage", f"{video} has the content of the held-out video {twin}")
            for record in self.by_video[video]:
                self._add(record, [problem])

    def _add_held_out(self, where: str, id_: str | None, problem: Problem) -> None:
        self._findings.append((self.num_records + 1, Finding(where, id_, problem.code, problem.message)))

    def find_missing_files(self) -> None:
        """Finds videos without a file, and opens no video."""
        with Progress("files", len(self.by_video)) as progress:
            for done, (video, records) in enumerate(self.by_video.items(), 1):
                try:
                    source_stamp(video)
                except VideoError as error:
                    for record in records:
                        self._add(record, [Problem(error.code, error.message)])
                progress.update(done, {})

    def measure(self, video_probe: VideoProbe, num_workers: int) -> None:
        """Opens every video once, and finds faults of the video and of the records about the video."""
        function = partial(self._measure_video, video_probe)
        with Progress("videos", len(self.by_video)) as progress:
            for done, results in enumerate(in_parallel(function, self.by_video.items(), num_workers), 1):
                for record, problems in results:
                    self._add(record, problems)
                progress.update(done, {"findings": len(self._findings)})

    def _measure_video(
        self, video_probe: VideoProbe, item: tuple[str, Sequence[Record]]
    ) -> list[tuple[Record, list[Problem]]]:
        """Counts tokens of sound records only: a record with an error may have no valid episode."""
        video, records = item
        samples = {record.number: record.sample() for record in records}
        sound = [record.number for record in records if record.is_sound]
        measurement = video_probe.measure(video, [samples[number] for number in sound])
        lengths = dict(zip(sound, measurement.lengths, strict=True))
        info = measurement.facts.info
        results = []
        for record in records:
            problems = list(measurement.facts.problems)
            if info is not None:
                problems += self._video_problems(samples[record.number], info, lengths.get(record.number))
            results.append((record, problems))
        return results

    def _video_problems(self, sample: Sample, info: VideoInfo, length: Length) -> list[Problem]:
        problems = [*time_problems(sample, info), *call_problems(sample, info, self._rules)]
        if isinstance(length, Problem):
            codes = {problem.code for problem in problems}
            problems += [length] if length.code not in codes else []
        elif length is not None and length.total > self._max_tokens:
            parts = f"{length.overview} of the overview, {length.crops} of crops, {length.text} of text"
            message = f"{length.total} tokens ({parts}); at most {self._max_tokens} are allowed"
            problems.append(Problem("too_many_tokens", message))
        return problems

    def _add(self, record: Record, problems: Iterable[Problem]) -> None:
        for problem in problems:
            self._findings.append((record.number, Finding(record.where, record.id, problem.code, problem.message)))


def _same_content(videos: Iterable[str], held_out: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yields (video, held-out video) with the same bytes. Reads files of equal size only; skips unreadable files."""
    digest = cache(partial(_or_none, content_digest))
    by_size: dict[int, list[str]] = defaultdict(list)
    for video in held_out:
        if (size := _or_none(content_size, video)) is not None:
            by_size[size].append(video)
    for video in videos:
        alike = by_size.get(_or_none(content_size, video) or 0, [])
        twin = next((other for other in alike if digest(video) is not None and digest(other) == digest(video)), None)
        if twin is not None:
            yield video, twin


def _or_none(function: Callable[[str], Value], video: str) -> Value | None:
    """Returns the function's value, or None for an unreadable video."""
    try:
        return function(video)
    except VideoError:
        return None

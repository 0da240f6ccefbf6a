"""The results of reading a file, a row for each record, and the allowed folders of videos."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videoseek.config import UsageError
from videoseek.samples.schema import RecordError, confined
from videoseek.types import Sample


@dataclass(frozen=True, slots=True)
class Problem:
    """The reason against a record: a stable code for counting, and a sentence."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Row:
    """A record of a file, with either a sample or a problem.

    `offset` finds the record again (see `RecordFile.at`), `number` counts from 1, and `where` names the record in
    messages (`FILE, line 3`).
    """

    offset: int
    number: int
    where: str
    sample: Sample | None
    problem: Problem | None


@dataclass(frozen=True, slots=True)
class VideoPaths:
    """Maps the names of videos in records to local files below one root.

    `prefixes` are (from, to) pairs: the first pair with a matching `from` replaces the beginning of a name once.
    Relative names start from `video_root` (None: the folder of the data file), and every name must lead to a file
    inside the root.
    """

    video_root: Path | None = None
    prefixes: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, video_root: str | None, rules: Sequence[str] = ()) -> VideoPaths:
        """Builds the mapping from `FROM=>TO` texts. Raises UsageError."""
        pairs = []
        for rule in rules:
            old, arrow, new = rule.partition("=>")
            if not arrow or not old:
                raise UsageError(f"video_prefixes wants rules such as s3://bucket/=>videos/, got {rule!r}")
            pairs.append((old, new))
        return cls(Path(video_root) if video_root is not None else None, tuple(pairs))

    def locate(self, video: str, folder: Path) -> str:
        """Returns the path of a video named by a data file in `folder`. Raises RecordError."""
        old, new = next((pair for pair in self.prefixes if video.startswith(pair[0])), ("", ""))
        name = (new + video.removeprefix(old)).removeprefix("file://")
        if "://" in name:
            raise RecordError("outside_root", f"video {video!r} is no local file; a rule in video_prefixes can map it")
        return str(confined(name, self.video_root or folder))


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A data file. The name gives a prefix of ids and perhaps a kind; video paths start from the file's folder."""

    path: Path
    paths: VideoPaths

    def locate(self, video: str) -> str:
        """Returns the path of a video named by a record of the file. Raises RecordError."""
        return self.paths.locate(video, self.path.parent)


#: Turns one record and its number (from 1) into a sample. Raises RecordError.
Convert = Callable[[Any, int], Sample]


@dataclass(frozen=True, slots=True)
class Format:
    """A format of data files. `prepare` runs once for each file and returns the function for the file's records."""

    summary: str
    prepare: Callable[[SourceFile], Convert]


def problem_lines(bad: Sequence[tuple[str, Problem]]) -> list[str]:
    """Returns a line for each code of a problem, the commonest first: the count, and the first case."""
    firsts: dict[str, str] = {}
    for where, problem in bad:
        firsts.setdefault(problem.code, f"{where}: {problem.message}")
    counts = Counter(problem.code for _, problem in bad)
    return [f"  {count:>9}  {code:<18} {firsts[code]}" for code, count in counts.most_common()]

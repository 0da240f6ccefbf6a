"""What reading gives: one row a record, a sample or a problem; and where videos may lie."""

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
    """Why a record cannot be used: a stable code for counting, and one sentence."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Row:
    """One record of a file. `where` names it (`FILE, line 3`); exactly one of sample and problem is there."""

    where: str
    sample: Sample | None
    problem: Problem | None


@dataclass(frozen=True, slots=True)
class VideoPaths:
    """From the names of videos in a record to local files below one root.

    `prefixes` are (from, to) pairs: the first one that a name starts with is applied, once. Relative names start from
    `video_root` (None: the folder of the data file), and no name may lead out of it.
    """

    video_root: Path | None = None
    prefixes: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, video_root: str | None, rules: Sequence[str] = ()) -> VideoPaths:
        """`rules` are `FROM=>TO` texts. Raises UsageError."""
        pairs = []
        for rule in rules:
            old, arrow, new = rule.partition("=>")
            if not arrow or not old:
                raise UsageError(f"video_prefixes wants rules such as s3://bucket/=>videos/, got {rule!r}")
            pairs.append((old, new))
        return cls(Path(video_root) if video_root is not None else None, tuple(pairs))

    def locate(self, video: str, folder: Path) -> str:
        """The path of a video that a data file in `folder` names. Raises RecordError."""
        old, new = next((pair for pair in self.prefixes if video.startswith(pair[0])), ("", ""))
        name = (new + video.removeprefix(old)).removeprefix("file://")
        if "://" in name:
            raise RecordError("outside_root", f"video {video!r} is no local file; a rule in video_prefixes can map it")
        return str(confined(name, self.video_root or folder))


@dataclass(frozen=True, slots=True)
class Place:
    """The data file that a record stands in, for whatever the record leaves to it."""

    path: Path
    paths: VideoPaths

    def locate(self, video: str) -> str:
        return self.paths.locate(video, self.path.parent)


#: One record and its number (from 1) to its sample. Raises RecordError.
Convert = Callable[[Any, int], Sample]


@dataclass(frozen=True, slots=True)
class Format:
    """A way to write samples. `prepare` is called once a file and gives the function for its records."""

    summary: str
    prepare: Callable[[Place], Convert]


def problem_lines(bad: Sequence[tuple[str, Problem]]) -> list[str]:
    """How many records have which problem, the commonest first, each with its first case."""
    firsts: dict[str, str] = {}
    for where, problem in bad:
        firsts.setdefault(problem.code, f"{where}: {problem.message}")
    counts = Counter(problem.code for _, problem in bad)
    return [f"  {count:>9}  {code:<18} {firsts[code]}" for code, count in counts.most_common()]

"""Task: a benchmark as data. A task reads the released rows into questions, and names prompts, metric and source."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from videoseek.config import TrainConfig, UsageError
from videoseek.evaluation.metrics import Outcome
from videoseek.samples.readers.parquet import ParquetRows
from videoseek.samples.readers.records import JsonLines, JsonList, RecordFile
from videoseek.samples.readers.rows import Problem
from videoseek.samples.schema import DataError, RecordError, checked_sample
from videoseek.types import Interval, Sample

FILM_SUFFIXES = ("", ".mp4", ".mkv", ".webm", ".MP4", ".avi", ".mov")
_LETTERED_LINE = re.compile(r"^\s*\(?([A-Z])[.):]\s*(.*?)\s*$", re.MULTILINE)
#: The set's categories of a question: name of the grouping -> one or more groups.
Groups = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Subtitles:
    """A file of subtitles; second 0 of the film is `start_seconds` of the file's clock."""

    path: Path
    start_seconds: float = 0.0
    least_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Question:
    """A sample of a benchmark. `clue_frames` are frame numbers of the evidence; `hint` precedes the question."""

    sample: Sample
    groups: Groups = field(default_factory=dict)
    subtitles: Subtitles | None = None
    clue_frames: tuple[int, ...] = ()
    hint: str = ""


@dataclass(frozen=True, slots=True)
class PromptStyle:
    """The user's text in the words of another harness, with {question} and {options}; `source` names its file."""

    source: str
    choice: str = ""
    open: str = ""
    option: str = "{letter}. {text}"
    system: str = "You are a helpful assistant."


@dataclass(frozen=True, slots=True)
class Row:
    """A released row with its place: `name` is FILE-NUMBER, `folder` the set's folder."""

    values: dict[str, Any]
    name: str
    file: Path
    folder: Path

    def text(self, key: str) -> str:
        """Returns a field as text. Raises RecordError for a missing field."""
        value = self.values.get(key)
        if value is None or isinstance(value, (dict, list)):
            raise RecordError("missing_field", f"field {key!r} must be a text, got {value!r}")
        return str(value)

    def find(self, name: str, folders: Sequence[str]) -> Path | None:
        """Returns the first existing `FOLDER/name`, with or without a suffix of films."""
        if ".." in PurePosixPath(name).parts or PurePosixPath(name).is_absolute():
            raise RecordError("outside_root", f"the name {name!r} leaves the folder of the set")
        paths = (self.folder / folder / f"{name}{suffix}" for folder in folders for suffix in FILM_SUFFIXES)
        return next((path for path in paths if path.is_file()), None)

    def film(self, name: str, *folders: str) -> str:
        """Returns the path of a film. Raises RecordError (missing_film) if no folder holds the film."""
        path = self.find(name, folders)
        if path is None:
            raise RecordError("missing_film", f"film {name!r} lies in none of {', '.join(f or '.' for f in folders)}")
        return str(path)


@dataclass(frozen=True, slots=True)
class Loaded:
    """The questions of a task, and the place and problem of each row that cannot be asked."""

    questions: list[Question]
    problems: list[tuple[str, Problem]]

    @property
    def num_missing(self) -> int:
        """Returns the number of rows that only lack their film."""
        return sum(problem.code == "missing_film" for _, problem in self.problems)


@dataclass(frozen=True, kw_only=True)
class Task:
    """A benchmark.

    `files` are globs below the set's folder; the first that matches gives the files. `read` turns a row into a question
    and raises RecordError; `unfold` turns a record of a file into rows. `numbers` adds the set's own metrics to those
    of `metrics.summarize`; `metric` names the number that heads the table. `question_only` names the task that asks the
    same without the film. `rubric` is the judge's scale for open answers.
    """

    name: str
    citation: str
    files: tuple[str, ...]
    read: Callable[[Row], Question] | None = None
    folders: tuple[str, ...] = ()
    unfold: Callable[[Any], Iterable[Any]] = lambda record: [record]
    numbers: Callable[[Sequence[Outcome]], dict[str, float]] = lambda outcomes: {}
    metric: str = "accuracy"
    question_only: str | None = None
    rubric: str = "binary"
    styles: Mapping[str, PromptStyle] = field(default_factory=dict)

    def load(self, config: TrainConfig) -> Loaded:
        """Reads all rows of the set. Raises UsageError for a missing folder or set."""
        folder, files = self.find_files(config.evaluate.data_root)
        questions: list[Question] = []
        problems: list[tuple[str, Problem]] = []
        for file in files:
            values = (value for record in records_of(file) for value in self.unfold(record.value))
            for number, value in enumerate(values, 1):
                name = f"{file.stem}-{number}"
                try:
                    assert self.read is not None  # a task of rows has one
                    if isinstance(value, RecordError):
                        raise value
                    questions.append(self.read(Row(value, name, file, folder)))
                except RecordError as error:
                    problems.append((name, Problem(error.code, str(error))))
                except (LookupError, TypeError, ValueError, AttributeError) as error:  # a field of another type
                    problems.append((name, Problem("bad_row", f"{type(error).__name__}: {error}")))
        if not questions:
            where, first = problems[0] if problems else (str(files[0]), Problem("empty", "the file holds no rows"))
            raise DataError(f"task {self.name}: none of {len(problems)} rows can be asked; {where}: {first.message}")
        return without_repeated_ids(Loaded(questions, problems))

    def find_files(self, data_root: str | None) -> tuple[Path, list[Path]]:
        """Returns the set's folder and its files. Raises UsageError for a missing folder or set."""
        if data_root is None:
            raise UsageError(f"task {self.name} needs evaluate.data_root=DIR, the folder of the released files")
        root = Path(data_root)
        for folder in [*(root / name for name in self.folders), root]:
            for pattern in self.files:
                if files := sorted(path for path in folder.glob(pattern) if path.is_file()):
                    return folder, files
        raise UsageError(
            f"task {self.name}: evaluate.data_root {data_root!r} holds none of {', '.join(self.files)}, "
            f"also not in a folder {' or '.join(self.folders)}"
        )


def without_repeated_ids(loaded: Loaded) -> Loaded:
    """Moves every question with an id that an earlier question has to the problems."""
    kept: dict[str, Question] = {}
    problems = list(loaded.problems)
    for question in loaded.questions:
        if question.sample.id in kept:
            problems.append((question.sample.id, Problem("repeated_id", "another question has this id")))
        else:
            kept[question.sample.id] = question
    return Loaded(list(kept.values()), problems)


def records_of(file: Path) -> RecordFile:
    """Returns the records of a .parquet, .json (a list) or .jsonl file. Raises DataError without pyarrow."""
    if file.suffix == ".parquet":
        return ParquetRows(file)
    return JsonList(file) if file.suffix == ".json" else JsonLines(file)


def multiple_choice(
    name: str,
    film: str,
    question: str,
    options: Sequence[str],
    key: str | int,
    *,
    groups: Groups | None = None,
    clues: tuple[Interval, ...] = (),
) -> Question:
    """Returns a question with options, without the letters that the set may have put before them.

    `key` is the letter, the text or the index (from 0) of an option. Raises RecordError (bad_key) for any other key,
    and for a text that is one option and the letter of another.
    """
    texts = strip_letters([str(option) for option in options])
    letters = [chr(ord("A") + index) for index in range(len(texts))]
    plain = str(key).strip()
    found = {index for index, text in enumerate(texts) if text.strip() == plain} if isinstance(key, str) else {key}
    if plain.strip("().").upper() in letters and len(plain) <= 3:
        found.add(letters.index(plain.strip("().").upper()))
    if len(found) != 1 or not 0 <= next(iter(found)) < len(texts):
        raise RecordError("bad_key", f"answer {key!r} names no single one of the {len(texts)} options")
    sample = checked_sample(
        id=name, video=film, question=question.strip(), answer=letters[found.pop()], kind="clue_single_wo_tool",
        options=tuple(texts), clues=clues,
    )  # fmt: skip
    return Question(sample, groups or {})


def open_question(name: str, film: str, question: str, key: str, groups: Groups | None = None) -> Question:
    """Returns a question without options, for a judge. Raises RecordError for an empty key."""
    sample = checked_sample(id=name, video=film, question=question.strip(), answer=key, kind="clue_single_wo_tool")
    return Question(sample, groups or {})


def strip_letters(options: Sequence[str]) -> list[str]:
    """Returns the options without `A. `, `(A) ` or `A: ` if every option carries its own letter."""
    marks = [re.match(rf"\s*\(?{chr(ord('A') + index)}[.):]\s*", option) for index, option in enumerate(options)]
    if not all(marks):
        return list(options)
    return [option[mark.end() :] for option, mark in zip(options, marks, strict=True) if mark]


def split_options(text: str) -> tuple[str, list[str]]:
    """Returns a question and the options that follow as lines `(A) ..`, `A. ..` or `A) ..`, in order from A."""
    lines = list(_LETTERED_LINE.finditer(text))
    for first, line in enumerate(lines):
        tail = [match[1] for match in lines[first:]]
        if line[1] == "A" and tail == [chr(ord("A") + index) for index in range(len(tail))]:
            return text[: line.start()].strip(), [match[2] for match in lines[first:]]
    return text.strip(), []

"""Items travel through the stages: first a bare video, last a question with a trajectory or a rejection."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from videoseek.types import Interval, Sample

#: Names of the stages, in order. The names are stable, because `summary.json` and `rejected.jsonl` hold the names.
STAGES = ("caption", "question", "localise", "verify", "overview", "trajectory", "judge")
#: The fineness of a clue's evidence, from coarse to fine.
DETAILS = ("large", "medium", "small")
#: Code of an item after a request without an answer. The item passed every check so far; the next run tries again.
UNFINISHED = "unfinished"
#: Fields of `Item` with another name in `items.jsonl`. The names on disk stay, so shards of an earlier version can
#: still be merged.
_JSON_NAMES = {"rationale": "seen", "rejection": "ending"}


@dataclass(frozen=True, slots=True)
class Caption:
    start_seconds: float
    end_seconds: float
    text: str


@dataclass(frozen=True, slots=True)
class Question:
    """`answer` is a letter, or free text without options. `evidence` holds the windows behind a generated question."""

    text: str
    options: tuple[str, ...]
    answer: str
    evidence: tuple[Interval, ...] = ()


@dataclass(frozen=True, slots=True)
class Clue:
    """A window with evidence.

    `cue` is visible in the overview and motivates a closer look. The close look shows `finding`. `detail` (from
    `DETAILS`) is the fineness of the evidence, and `strategy` is the quota of the crop.
    """

    start_seconds: float
    end_seconds: float
    cue: str
    finding: str
    detail: str
    strategy: str

    @property
    def window(self) -> Interval:
        return self.start_seconds, self.end_seconds


@dataclass(frozen=True, slots=True)
class Usage:
    """Number of answered requests, number of repairs among the requests, and number of tokens."""

    calls: int = 0
    repairs: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.calls + other.calls,
            self.repairs + other.repairs,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
        )


@dataclass(frozen=True, slots=True)
class Rejection:
    """The last stage of a rejected item, a stable code, and the reason in a sentence."""

    stage: str
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Item:
    """An item of a run. `source` is the id of the video or of the input line. Each stage fills in further fields.

    `rationale` is the model's reasoning from the clips to the answer, `analysis` is the judge's reasoning. The first
    item of a source carries the usage of the stages before the questions.
    """

    id: str
    source: str
    video: str
    captions: tuple[Caption, ...] = ()
    question: Question | None = None
    clues: tuple[Clue, ...] = ()
    rationale: str = ""
    needs_tool: bool = True
    turns: tuple[str, ...] = ()
    analysis: str = ""
    usage: dict[str, Usage] = field(default_factory=dict)
    rejection: Rejection | None = None

    @property
    def kind(self) -> str:
        return f"clue_{'single' if len(self.clues) == 1 else 'multi'}_{'w' if self.needs_tool else 'wo'}_tool"

    @property
    def is_unfinished(self) -> bool:
        return self.rejection is not None and self.rejection.code == UNFINISHED

    def require_question(self) -> Question:
        """Returns the question of an item after the stage `question`. Raises ValueError for an earlier item."""
        if self.question is None:
            raise ValueError(f"item {self.id!r} has no question yet")
        return self.question

    def sample(self) -> Sample:
        """Returns an accepted item as training data."""
        question = self.require_question()
        return Sample(
            id=self.id,
            video=self.video,
            question=question.text,
            answer=question.answer,
            kind=self.kind,
            options=question.options,
            clues=tuple(clue.window for clue in self.clues),
            turns=self.turns,
        )

    def to_json(self) -> str:
        record = {_JSON_NAMES.get(name, name): value for name, value in asdict(self).items()}
        return json.dumps(record, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Item:
        """Reads the text of `to_json`. Raises ValueError, KeyError or TypeError for anything else."""
        record: dict[str, Any] = json.loads(text)
        for name, json_name in _JSON_NAMES.items():
            record[name] = record.pop(json_name)
        question, rejection = record["question"], record["rejection"]
        record["captions"] = tuple(Caption(**caption) for caption in record["captions"])
        if question is not None:
            evidence = tuple((start, end) for start, end in question["evidence"])
            record["question"] = Question(question["text"], tuple(question["options"]), question["answer"], evidence)
        record["clues"] = tuple(Clue(**clue) for clue in record["clues"])
        record["turns"] = tuple(record["turns"])
        record["usage"] = {stage: Usage(**usage) for stage, usage in record["usage"].items()}
        record["rejection"] = None if rejection is None else Rejection(**rejection)
        return cls(**record)


def hash_number(*words: object) -> int:
    """Returns a number below 2**64 from the words alone, so all machines get the same number."""
    text = "/".join(map(str, words))
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")


def in_shard(items: Iterable[Item], index: int, count: int) -> list[Item]:
    """Returns the items of shard `index` (counted from 1) of `count` shards, selected by the hash of the ids."""
    return [item for item in items if hash_number("shard", item.id) % count == index - 1]

"""What travels through the stages: an item, from a bare video to a question with a trajectory or a reason why not."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from videoseek.types import Interval, Sample

#: Ending of an item whose requests went unanswered: no verdict, the next run tries again.
UNFINISHED = "unfinished"


@dataclass(frozen=True, slots=True)
class Caption:
    start_seconds: float
    end_seconds: float
    text: str


@dataclass(frozen=True, slots=True)
class Question:
    """`answer` is an option's letter, or words without options; `evidence` is where the question was made from."""

    text: str
    options: tuple[str, ...]
    answer: str
    evidence: tuple[Interval, ...] = ()


@dataclass(frozen=True, slots=True)
class Clue:
    """A window with evidence. `cue` can be seen from afar and says that it is worth a look, `finding` is what the
    close look shows, `detail` (see `quota.DETAILS`) is how fine that is, `strategy` the quota of the crop."""

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
    """Answered requests, those of them that were repairs, and their tokens."""

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
class Ending:
    """Why an item went no further: at which stage, a stable code, one sentence."""

    stage: str
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Item:
    """`source` is the id of the video or input line that the item came from; stage by stage the rest is filled in.

    `seen` is the reasoning that answered from the clips, `analysis` the judge's. The usage of the stages that make
    questions is booked on the first item of its source.
    """

    id: str
    source: str
    video: str
    captions: tuple[Caption, ...] = ()
    question: Question | None = None
    clues: tuple[Clue, ...] = ()
    seen: str = ""
    needs_tool: bool = True
    turns: tuple[str, ...] = ()
    analysis: str = ""
    usage: dict[str, Usage] = field(default_factory=dict)
    ending: Ending | None = None

    @property
    def kind(self) -> str:
        return f"clue_{'single' if len(self.clues) == 1 else 'multi'}_{'w' if self.needs_tool else 'wo'}_tool"

    @property
    def asked(self) -> Question:
        """The question of an item past the stage that makes one."""
        if self.question is None:
            raise ValueError(f"item {self.id!r} has no question yet")
        return self.question

    def sample(self) -> Sample:
        """An accepted item as training data."""
        question = self.asked
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
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Item:
        """Raises ValueError, KeyError or TypeError for anything but `to_json`'s form."""
        record: dict[str, Any] = json.loads(text)
        question, ending = record["question"], record["ending"]
        record["captions"] = tuple(Caption(**caption) for caption in record["captions"])
        if question is not None:
            evidence = tuple((start, end) for start, end in question["evidence"])
            record["question"] = Question(question["text"], tuple(question["options"]), question["answer"], evidence)
        record["clues"] = tuple(Clue(**clue) for clue in record["clues"])
        record["turns"] = tuple(record["turns"])
        record["usage"] = {stage: Usage(**usage) for stage, usage in record["usage"].items()}
        record["ending"] = None if ending is None else Ending(**ending)
        return cls(**record)


def hash_number(*words: object) -> int:
    """A number below 2**64 that depends on the words alone: the same on every machine and in every run."""
    text = "/".join(map(str, words))
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")


def in_shard(items: Iterable[Item], index: int, count: int) -> list[Item]:
    """The items of part `index` (from 1) of `count`, by the hash of their ids."""
    return [item for item in items if hash_number("shard", item.id) % count == index - 1]

"""The values shared by all rooms. Each validates itself on construction.

Names carry the units (`start_seconds`, `num_tokens`). Intervals are half-open, `[start, end)`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Any

#: Data kinds. The first four cross clue cardinality with the need for the tool (Video-o3, 2601.23224).
#: `temporal_grounding` asks for a window. `perception` is plain text about a clip, for SFT only (without a reward).
KINDS = (
    "clue_single_w_tool",
    "clue_multi_w_tool",
    "clue_single_wo_tool",
    "clue_multi_wo_tool",
    "temporal_grounding",
    "perception",
)
STRATEGIES = ("coarse", "medium", "fine")

#: Options of a question have the letters A to Z.
MAX_OPTIONS = 26

Interval = tuple[float, float]


class Role(IntEnum):
    """The role of a token. The role of the predicted token decides the mask of an attention row."""

    PAD = 0
    SYSTEM = 1
    QUESTION = 2
    GLOBAL_VIDEO = 3
    CROP_VIDEO = 4
    OBSERVATION = 5
    THINK = 6
    CALL = 7
    ANSWER = 8
    TAG = 9  # tags of an assistant turn, and its text outside think, call and answer


class TurnKind(IntEnum):
    """The kind of a token's turn: not the model's, clue-seeking (with a call), or answering."""

    NONE = 0
    SEEK = 1
    ANSWER = 2


class StopReason(StrEnum):
    """The reason for the end of an episode."""

    ANSWERED = "answered"
    NO_CALL_NO_ANSWER = "no_call_no_answer"
    TURN_LIMIT = "turn_limit"
    TOKEN_LIMIT = "token_limit"
    CONTEXT_FULL = "context_full"
    DEADLINE = "deadline"
    REFERENCE = "reference"  # a recorded trajectory, not a sampled one

    @property
    def overlong(self) -> bool:
        """Returns whether a limit cut the episode off: the end says nothing about the answer (`grpo.overlong`)."""
        return self in (StopReason.TURN_LIMIT, StopReason.TOKEN_LIMIT, StopReason.CONTEXT_FULL, StopReason.DEADLINE)


def letter_options(options: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs each option with its letter: [("A", "red"), ("B", "blue")].

    An option after the 26th gets a character after Z. `samples.check` refuses samples with more than 26 options, but a
    page must be able to show the options.
    """
    return [(chr(ord("A") + index), option) for index, option in enumerate(options)]


def _check_intervals(name: str, intervals: tuple[Interval, ...]) -> None:
    for start_seconds, end_seconds in intervals:
        if not 0 <= start_seconds < end_seconds:
            raise ValueError(f"{name} [{start_seconds}, {end_seconds}] must satisfy 0 <= start < end (seconds)")


@dataclass(frozen=True, slots=True)
class Sample:
    """A question about a video, with evidence and, for SFT, a reference trajectory.

    `turns` are the assistant's texts only. The tool makes the observations anew: SFT, rollout and evaluation see the
    same clips. `window` limits the prompt to a part of the video (None: the whole video).
    """

    id: str
    video: str
    question: str
    answer: str
    kind: str
    options: tuple[str, ...] = ()
    clues: tuple[Interval, ...] = ()
    turns: tuple[str, ...] = ()
    window: Interval | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind {self.kind!r} of sample {self.id!r} is not one of {', '.join(KINDS)}")
        if not self.answer.strip():
            raise ValueError(f"sample {self.id!r} has no answer")
        _check_intervals(f"clue of sample {self.id!r}", self.clues)
        if self.window is not None:
            _check_intervals(f"window of sample {self.id!r}", (self.window,))

    @property
    def lettered_options(self) -> list[tuple[str, str]]:
        """Returns the options with their letters, [("A", "red"), ("B", "blue")], and unchanged texts."""
        return letter_options(self.options)


@dataclass(frozen=True, slots=True)
class Clip:
    """A reference to frames: their file, presentation times and size. Pixels are decoded on demand.

    height and width are in pixels after resizing, multiples of 28 (two merged patches of 14 px). Frames come in pairs.
    """

    video: str
    start_seconds: float
    end_seconds: float
    frame_seconds: tuple[float, ...]
    height: int
    width: int
    sample_fps: float

    def __post_init__(self) -> None:
        if len(self.frame_seconds) < 2 or len(self.frame_seconds) % 2:
            raise ValueError(f"a clip needs an even number of frames, got {len(self.frame_seconds)} of {self.video}")
        if self.height % 28 or self.width % 28 or self.height <= 0 or self.width <= 0:
            raise ValueError(f"clip size {self.height}x{self.width} must be positive multiples of 28")

    @property
    def grid_thw(self) -> tuple[int, int, int]:
        """Returns the number of patches (2 frames x 14 px x 14 px) along time, height and width."""
        return len(self.frame_seconds) // 2, self.height // 14, self.width // 14

    @property
    def num_tokens(self) -> int:
        """Returns the number of merged tokens (2 x 2 patches each)."""
        t, h, w = self.grid_thw
        return t * h * w // 4

    @property
    def second_per_grid(self) -> float:
        """Returns the seconds between two temporal patches."""
        return 2.0 / self.sample_fps


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault in a model's output: a stable code, and the sentence for the model."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Call:
    """A well-formed call of the crop tool, in seconds of the source video.

    `strategy` names the token quota. `fps`, `num_frames` and `scale` (of a frame's sides, in (0, 1]) narrow the quota;
    None leaves them to the configuration. With `num_parts`, start and end count equal parts of the video, from 0.
    """

    start_seconds: float
    end_seconds: float
    strategy: str = "medium"
    fps: float | None = None
    num_frames: int | None = None
    scale: float | None = None
    num_parts: int | None = None


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A well-formed call of any other tool, by name. `earlier` holds the episode's calls before this one, in order."""

    name: str
    arguments: Mapping[str, Any]
    earlier: tuple[Call | ToolCall, ...] = field(default=(), compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class ParsedTurn:
    """The content of an assistant's text. A turn may have calls and an answer, or neither.

    `extra` holds the texts of a format's further blocks, by name. `bad_calls` holds the fault of each unreadable call
    with its place among all calls of the turn, if the format allows several calls.
    """

    think: str | None
    calls: tuple[Call | ToolCall, ...]
    answer: str | None
    faults: tuple[Fault, ...]
    extra: Mapping[str, str] = field(default_factory=dict)
    bad_calls: tuple[tuple[int, Fault], ...] = ()

    @property
    def crops(self) -> tuple[Call, ...]:
        """Returns the calls of the crop tool, in order."""
        return tuple(call for call in self.calls if isinstance(call, Call))

    def outcomes(self) -> list[Call | ToolCall | Fault]:
        """Returns each call of the turn, or the fault of an unreadable one, in the order of the text."""
        outcomes: list[Call | ToolCall | Fault] = list(self.calls)
        for place, fault in self.bad_calls:
            outcomes.insert(place, fault)
        return outcomes


@dataclass(frozen=True, slots=True)
class Turn:
    """Tokens `[start, end)` of an episode. `role` is system, user or assistant."""

    role: str
    text: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class CallRecord:
    """A call and its outcome: the index of its assistant turn (0-based), and its clip, its text or its fault."""

    turn: int
    call: Call | ToolCall | None
    fault: Fault | None = None
    clip: Clip | None = None
    text: str | None = None

    @property
    def failed(self) -> bool:
        """Returns whether the call brought neither a clip nor a text."""
        return self.clip is None and self.text is None


@dataclass(slots=True)
class Episode:
    """A trajectory, sampled or recorded. Training uses exactly these token ids.

    Per-token lists have equal length: token_ids, roles (Role), turn_kinds (TurnKind), loss_mask (trained as a target),
    rollout_logprobs (of the sampling policy; 0 for unsampled tokens). clips have the order of the vision blocks.
    """

    sample: Sample
    token_ids: list[int]
    roles: list[int]
    turn_kinds: list[int]
    loss_mask: list[bool]
    rollout_logprobs: list[float]
    clips: list[Clip]
    turns: list[Turn]
    calls: list[CallRecord]
    stop_reason: StopReason
    prompt_length: int
    answer: str | None = None
    faults: list[Fault] = field(default_factory=list)
    rewards: dict[str, float] = field(default_factory=dict)
    weight_version: int = 0

    def __post_init__(self) -> None:
        lengths = {
            len(self.token_ids),
            len(self.roles),
            len(self.turn_kinds),
            len(self.loss_mask),
            len(self.rollout_logprobs),
        }
        if len(lengths) != 1:
            raise ValueError(f"episode of {self.sample.id!r}: per-token lists differ in length: {sorted(lengths)}")

    def assistant_texts(self) -> list[str]:
        """Returns the texts of the assistant's turns, in order."""
        return [turn.text for turn in self.turns if turn.role == "assistant"]

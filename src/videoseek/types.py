"""The currencies: values that cross module borders. Each validates itself on construction.

Units live in names (`start_seconds`, `num_tokens`); intervals are half-open, `[start, end)`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, StrEnum

#: Data kinds. The first four cross clue cardinality with the need for the tool (Video-o3, 2601.23224);
#: `temporal_grounding` asks for a window; `perception` is plain text about a clip, trained but never scored.
KINDS = (
    "clue_single_w_tool",
    "clue_multi_w_tool",
    "clue_single_wo_tool",
    "clue_multi_wo_tool",
    "temporal_grounding",
    "perception",
)
STRATEGIES = ("coarse", "medium", "fine")

Interval = tuple[float, float]


class Role(IntEnum):
    """What a token is. A row of attention is treated by the role of the token that it predicts."""

    PAD = 0
    SYSTEM = 1
    QUESTION = 2
    GLOBAL_VIDEO = 3
    CROP_VIDEO = 4
    OBSERVATION = 5
    THINK = 6
    CALL = 7
    ANSWER = 8
    TAG = 9  # tags of an assistant turn and whatever else it holds outside think, call and answer


class TurnKind(IntEnum):
    """Which sort of turn a token stands in: not the model's, clue-seeking (holds a call), answering."""

    NONE = 0
    SEEK = 1
    ANSWER = 2


class StopReason(StrEnum):
    """Why an episode ended. `overlong` reasons are no verdict on the answer and are masked from the loss."""

    ANSWERED = "answered"
    NO_CALL_NO_ANSWER = "no_call_no_answer"
    TURN_LIMIT = "turn_limit"
    TOKEN_LIMIT = "token_limit"
    CONTEXT_FULL = "context_full"
    DEADLINE = "deadline"
    REFERENCE = "reference"  # a recorded trajectory, not a sampled one

    @property
    def overlong(self) -> bool:
        return self in (StopReason.TURN_LIMIT, StopReason.TOKEN_LIMIT, StopReason.CONTEXT_FULL, StopReason.DEADLINE)


def _check_intervals(name: str, intervals: tuple[Interval, ...]) -> None:
    for start_seconds, end_seconds in intervals:
        if not 0 <= start_seconds < end_seconds:
            raise ValueError(f"{name} [{start_seconds}, {end_seconds}] must satisfy 0 <= start < end (seconds)")


@dataclass(frozen=True, slots=True)
class Sample:
    """One question about one video, with its evidence and, for SFT, a reference trajectory.

    `turns` are the assistant's texts only: observations are never stored but made again by the tool, so that SFT,
    rollout and evaluation see the same clips. `window` limits what the prompt shows (None: the whole video).
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


@dataclass(frozen=True, slots=True)
class Clip:
    """A reference to frames: which file, which presentation times, which size. Pixels are decoded on demand.

    height and width are in pixels after resizing, multiples of 28 (two 14-px patches merged); frames come in pairs.
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
        """Temporal, height and width patches (2 frames x 14 px x 14 px)."""
        return len(self.frame_seconds) // 2, self.height // 14, self.width // 14

    @property
    def num_tokens(self) -> int:
        """Merged tokens (2 x 2 patches each)."""
        t, h, w = self.grid_thw
        return t * h * w // 4

    @property
    def second_per_grid(self) -> float:
        return 2.0 / self.sample_fps


@dataclass(frozen=True, slots=True)
class Fault:
    """What was wrong with a model's output: a stable code and the one sentence that goes back to the model."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Call:
    """A well-formed call of the crop tool, in seconds of the source video."""

    start_seconds: float
    end_seconds: float
    strategy: str


@dataclass(frozen=True, slots=True)
class ParsedTurn:
    """What an assistant's text says. `calls` and `answer` may both be there or both be missing; never raises."""

    think: str | None
    calls: tuple[Call, ...]
    answer: str | None
    faults: tuple[Fault, ...]


@dataclass(frozen=True, slots=True)
class Turn:
    """A stretch `[start, end)` of an episode's tokens: role is system, user, assistant."""

    role: str
    text: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class CallRecord:
    """A call as it went: the index of its assistant turn (0-based), and its clip or its fault."""

    turn: int
    call: Call | None
    fault: Fault | None = None
    clip: Clip | None = None


@dataclass(slots=True)
class Episode:
    """One trajectory, sampled or recorded. The token ids here are the only ids that are ever trained on.

    Per-token lists have equal length: token_ids, roles (Role), turn_kinds (TurnKind), loss_mask (trained as a target),
    logprobs (of the behaviour policy; 0 where the token was not sampled). clips follow the order of the vision blocks.
    """

    sample: Sample
    token_ids: list[int]
    roles: list[int]
    turn_kinds: list[int]
    loss_mask: list[bool]
    logprobs: list[float]
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
        lengths = {len(self.token_ids), len(self.roles), len(self.turn_kinds), len(self.loss_mask), len(self.logprobs)}
        if len(lengths) != 1:
            raise ValueError(f"episode of {self.sample.id!r}: per-token lists differ in length: {sorted(lengths)}")

    def assistant_texts(self) -> list[str]:
        return [turn.text for turn in self.turns if turn.role == "assistant"]

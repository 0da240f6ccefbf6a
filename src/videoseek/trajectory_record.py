"""One line of `trajectories/*.jsonl`: the record of an episode.

A line holds text, windows, rewards and token ids, but no pixels. A clip is its source file, its frame times and its
size, for a reader to decode again.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from videoseek.types import Call, CallRecord, Clip, Episode, Fault, Sample, ToolCall

#: Fields of a call that a line holds only if the call has them.
_OPTIONAL = ("fps", "num_frames", "scale", "num_parts")


@dataclass(frozen=True, slots=True)
class RecordedTurn:
    """A turn without the place in the token list. `role` is system, user or assistant."""

    role: str
    text: str
    num_tokens: int


@dataclass(frozen=True, slots=True)
class TrajectoryRecord:
    """An episode in the form of a line of a trajectory file.

    `clips` are the overview (if any) and then the clips of the executed calls, in order. A record read from a file
    lacks the sample's reference turns and the sentences of faults.
    """

    sample: Sample
    prediction: str | None
    turns: tuple[RecordedTurn, ...]
    calls: tuple[CallRecord, ...]
    clips: tuple[Clip, ...]
    rewards: dict[str, float]
    faults: tuple[str, ...]
    stop_reason: str
    weight_version: int
    token_ids: tuple[int, ...]

    @classmethod
    def from_episode(cls, episode: Episode) -> TrajectoryRecord:
        """Returns the record of an episode."""
        return cls(
            sample=episode.sample,
            prediction=episode.answer,
            turns=tuple(RecordedTurn(turn.role, turn.text, turn.end - turn.start) for turn in episode.turns),
            calls=tuple(episode.calls),
            clips=tuple(episode.clips),
            rewards=dict(episode.rewards),
            faults=tuple(fault.code for fault in episode.faults),
            stop_reason=str(episode.stop_reason),
            weight_version=episode.weight_version,
            token_ids=tuple(episode.token_ids),
        )

    @classmethod
    def from_json(cls, line: dict[str, Any]) -> TrajectoryRecord:
        """Reads `to_json`'s form. Raises LookupError, TypeError, ValueError or AttributeError for any other form."""
        sample = Sample(
            id=line["id"],
            video=line["video"],
            question=line["question"],
            answer=line["answer"],
            kind=line["kind"],
            options=tuple(line["options"]),
            clues=tuple((float(start), float(end)) for start, end in line["clues"]),
        )
        clips = [_clip_from_json(sample.video, clip) for clip in line["clips"]]
        crops = clips[1:]
        return cls(
            sample=sample,
            prediction=line["prediction"],
            turns=tuple(RecordedTurn(turn["role"], turn["text"], int(turn["num_tokens"])) for turn in line["turns"]),
            calls=tuple(_call_from_json(call, crops) for call in line["calls"]),
            clips=tuple(clips),
            rewards={name: float(value) for name, value in line["rewards"].items()},
            faults=tuple(line["faults"]),
            stop_reason=line["stop_reason"],
            weight_version=int(line["weight_version"]),
            token_ids=tuple(line["token_ids"]),
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the line's object. Times are in seconds, sizes in pixels."""
        sample = self.sample
        return {
            "id": sample.id,
            "video": sample.video,
            "kind": sample.kind,
            "question": sample.question,
            "options": list(sample.options),
            "answer": sample.answer,
            "clues": [list(clue) for clue in sample.clues],
            "prediction": self.prediction,
            "turns": [{"role": turn.role, "text": turn.text, "num_tokens": turn.num_tokens} for turn in self.turns],
            "calls": [_call_to_json(record) for record in self.calls],
            "clips": [_clip_to_json(clip) for clip in self.clips],
            "rewards": dict(self.rewards),
            "faults": list(self.faults),
            "stop_reason": self.stop_reason,
            "weight_version": self.weight_version,
            "token_ids": list(self.token_ids),
        }

    @property
    def overview(self) -> Clip | None:
        """Returns the first prompt's clip of the whole video."""
        return self.clips[0] if self.clips else None

    @property
    def accuracy(self) -> float:
        """Returns the accuracy in [0, 1], or NaN for an unscored episode."""
        return self.rewards.get("accuracy", math.nan)

    @property
    def is_right(self) -> bool:
        """Returns whether the answer earned full accuracy."""
        return self.accuracy >= 1

    @property
    def has_fault(self) -> bool:
        """Returns whether the model broke the format, or a call gave no clip."""
        return bool(self.faults) or any(call.failed for call in self.calls)


def _call_to_json(record: CallRecord) -> dict[str, Any]:
    call, fault = record.call, record.fault.code if record.fault else None
    window = asdict(call) if isinstance(call, Call) else dict.fromkeys(("start_seconds", "end_seconds", "strategy"))
    line = {name: value for name, value in window.items() if value is not None or name not in _OPTIONAL}
    if isinstance(call, ToolCall):
        line |= {"tool": call.name, "arguments": dict(call.arguments)}
    return {"turn": record.turn, **line, "fault": fault} | ({} if record.text is None else {"text": record.text})


def _call_from_json(line: dict[str, Any], crops: list[Clip]) -> CallRecord:
    """Takes the next of `crops` for a well-formed call without a fault and without a text (a shown clip)."""
    fault = Fault(line["fault"], "") if line["fault"] is not None else None
    call: Call | ToolCall
    if "tool" in line:
        call = ToolCall(line["tool"], dict(line["arguments"]))
    elif line["start_seconds"] is None:
        return CallRecord(line["turn"], None, fault)
    else:
        narrowed = {name: line[name] for name in _OPTIONAL if name in line}
        call = Call(float(line["start_seconds"]), float(line["end_seconds"]), line["strategy"], **narrowed)
    text = line.get("text")
    return CallRecord(line["turn"], call, fault, None if fault or text is not None else crops.pop(0), text)


def _clip_to_json(clip: Clip) -> dict[str, Any]:
    return {
        "start_seconds": clip.start_seconds,
        "end_seconds": clip.end_seconds,
        "frame_seconds": list(clip.frame_seconds),
        "height": clip.height,
        "width": clip.width,
        "num_tokens": clip.num_tokens,
    }


def _clip_from_json(video: str, line: dict[str, Any]) -> Clip:
    start_seconds, end_seconds = float(line["start_seconds"]), float(line["end_seconds"])
    frame_seconds = tuple(map(float, line["frame_seconds"]))
    # Stands in for the unrecorded sampling rate: the mean rate over the window.
    sample_fps = len(frame_seconds) / max(end_seconds - start_seconds, 1e-6)
    return Clip(video, start_seconds, end_seconds, frame_seconds, int(line["height"]), int(line["width"]), sample_fps)

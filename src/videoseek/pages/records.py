"""The files of a run, read back: numbers, settings and recorded episodes. Whatever a run did not write is empty."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from videoseek.config import UsageError
from videoseek.metrics import RunError, read_metrics
from videoseek.types import Call, CallRecord, Clip, Fault, Sample

#: Models that a run compares, in the order in which they are made, and how they are called on the page.
MODEL_LABELS = {"direct": "Direct", "sft": "SFT", "sft_rl": "SFT + RL"}

_TRAINING_FILES = "grpo_step_" + "[0-9]" * 6 + ".jsonl"


@dataclass(frozen=True, slots=True)
class RecordedTurn:
    role: str
    text: str
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Trajectory:
    """An `Episode` as `trajectories/*.jsonl` holds it. Faults carry their code only."""

    sample: Sample
    prediction: str | None
    turns: tuple[RecordedTurn, ...]
    overview: Clip | None
    calls: tuple[CallRecord, ...]
    rewards: dict[str, float]
    faults: tuple[str, ...]
    stop_reason: str

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Trajectory:
        """Raises LookupError, TypeError, ValueError or AttributeError for anything but `Episode.to_json`'s form."""
        sample = Sample(
            id=record["id"],
            video=record["video"],
            question=record["question"],
            answer=record["answer"],
            kind=record["kind"],
            options=tuple(record["options"]),
            clues=tuple((float(start), float(end)) for start, end in record["clues"]),
        )
        clips = [_clip(sample.video, clip) for clip in record["clips"]]
        shown = clips[1:]
        return cls(
            sample=sample,
            prediction=record["prediction"],
            turns=tuple(RecordedTurn(turn["role"], turn["text"], int(turn["num_tokens"])) for turn in record["turns"]),
            overview=clips[0] if clips else None,
            calls=tuple(_call(call, shown) for call in record["calls"]),
            rewards={name: float(value) for name, value in record["rewards"].items()},
            faults=tuple(record["faults"]),
            stop_reason=record["stop_reason"],
        )

    @property
    def accuracy(self) -> float:
        return self.rewards.get("accuracy", math.nan)

    @property
    def is_right(self) -> bool:
        return self.accuracy >= 1

    @property
    def has_fault(self) -> bool:
        return bool(self.faults) or any(call.clip is None for call in self.calls)


@dataclass(slots=True, eq=False)
class Question:
    """A held-out question with each model's episodes about it, in the order of their samples."""

    sample: Sample
    episodes: dict[str, list[Trajectory]] = field(default_factory=dict)

    def first(self, model: str) -> Trajectory | None:
        return next(iter(self.episodes.get(model, ())), None)


@dataclass(frozen=True, slots=True)
class RunFiles:
    """`models` are all that were scored or recorded; `training` maps a GRPO step to its file of episodes."""

    folder: Path
    config_text: str
    environment: dict[str, Any]
    summary: dict[str, Any]
    metrics: list[dict[str, Any]]
    questions: list[Question]
    training: dict[int, Path]

    @classmethod
    def read(cls, folder: Path) -> RunFiles:
        """Raises UsageError for a folder that holds no run, RunError for a file of another form."""
        if not folder.is_dir():
            raise UsageError(f"output folder {str(folder)!r} does not exist")
        config = folder / "config.yaml"
        trajectories = folder / "trajectories"
        held_out = {path.stem.removeprefix("eval_"): path for path in sorted(trajectories.glob("eval_*.jsonl"))}
        run = cls(
            folder=folder,
            config_text=config.read_text(encoding="utf-8", errors="replace") if config.is_file() else "",
            environment=_read_object(folder / "env.json"),
            summary=_read_object(folder / "summary.json"),
            metrics=read_metrics(folder / "metrics.jsonl"),
            questions=_read_questions(held_out),
            training={int(path.stem[-6:]): path for path in sorted(trajectories.glob(_TRAINING_FILES))},
        )
        if not (run.config_text or run.summary or run.metrics or run.questions or run.training):
            raise UsageError(f"folder {str(folder)!r} holds no run: neither config.yaml nor results")
        return run

    @property
    def models(self) -> list[str]:
        scored = {name.removeprefix("accuracy/") for name in self.summary if name.startswith("accuracy/")}
        found = scored | {model for question in self.questions for model in question.episodes}
        return [model for model in MODEL_LABELS if model in found] + sorted(found - MODEL_LABELS.keys())

    def number(self, name: str) -> float | None:
        """A number of the summary; None when it is missing or not one."""
        value = self.summary.get(name)
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else None

    def standard_error(self, model: str, *, tool_only: bool = False) -> float | None:
        """Of the mean accuracy over questions, the samples of a question counting as one; None below two questions."""
        means = []
        for question in self.questions:
            accuracies = [episode.accuracy for episode in question.episodes.get(model, ())]
            if accuracies and (not tool_only or question.sample.kind.endswith("_w_tool")):
                means.append(sum(accuracies) / len(accuracies))
        if len(means) < 2:
            return None
        mean = sum(means) / len(means)
        error = math.sqrt(sum((value - mean) ** 2 for value in means) / (len(means) - 1) / len(means))
        return error if math.isfinite(error) else None


def model_label(model: str) -> str:
    return MODEL_LABELS.get(model, model)


def read_trajectories(path: Path) -> list[Trajectory]:
    """Raises RunError, naming the line, for anything but recorded episodes."""
    episodes = []
    with path.open(encoding="utf-8", errors="replace", newline="\n") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                episodes.append(Trajectory.from_json(json.loads(line)))
            except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
                reason = f"{type(error).__name__} {error}"
                raise RunError(f"{path}, line {number} is not a recorded episode: {reason}") from error
    return episodes


def _read_questions(held_out: dict[str, Path]) -> list[Question]:
    questions: dict[tuple[str, str], Question] = {}
    for model, path in held_out.items():
        for episode in read_trajectories(path):
            sample = episode.sample
            question = questions.setdefault((sample.id, sample.video), Question(sample))
            question.episodes.setdefault(model, []).append(episode)
    return list(questions.values())


def _read_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise RunError(f"{path} holds no JSON object")
    return value


def _clip(video: str, record: dict[str, Any]) -> Clip:
    start_seconds, end_seconds = float(record["start_seconds"]), float(record["end_seconds"])
    frame_seconds = tuple(map(float, record["frame_seconds"]))
    fps = len(frame_seconds) / max(end_seconds - start_seconds, 1e-6)
    return Clip(video, start_seconds, end_seconds, frame_seconds, int(record["height"]), int(record["width"]), fps)


def _call(record: dict[str, Any], shown: list[Clip]) -> CallRecord:
    """A well-formed call without a fault was executed: the next of the `shown` clips is its own, and is taken off."""
    fault = Fault(record["fault"], "") if record["fault"] is not None else None
    if record["start_seconds"] is None:
        return CallRecord(record["turn"], None, fault)
    call = Call(float(record["start_seconds"]), float(record["end_seconds"]), record["strategy"])
    return CallRecord(record["turn"], call, fault, None if fault else shown.pop(0))

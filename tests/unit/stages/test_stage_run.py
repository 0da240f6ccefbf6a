"""The end of a step: what is evaluated, what is the best, and what is saved when."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from support.tiny_world import tiny_world

from videoseek.checkpoint import TrainerState
from videoseek.config_merge import load_config
from videoseek.engine import TrainEngine
from videoseek.stages import stage_run
from videoseek.stages.pipeline import questions_inside
from videoseek.stages.stage_run import RunContext, StageRun

ENGINE = cast(TrainEngine, SimpleNamespace(whole_weights=nullcontext))


class Notes:
    """Stands in for metrics and writer, and keeps the rows and states that they get."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.states: list[TrainerState] = []
        self.num_checks = 0

    def write(self, stage: str, step: int, values: dict[str, float]) -> None:
        self.rows.append({"step": step, **values})

    def check(self) -> None:
        self.num_checks += 1

    def save(self, *arguments: Any) -> None:
        self.states.append(arguments[4])


def opened(notes: Notes, output_dir: Path, keys: list[str], name: str = "sft") -> StageRun:
    world = tiny_world()
    return StageRun(
        context=RunContext(load_config(["recipe=sft_rl", *keys]), output_dir, torch.device("cpu")),
        name=name,
        source=output_dir,
        policy=world.policy(),
        environment=world.environment,
        metrics=cast(Any, notes),
        writer=cast(Any, notes),
        questions=world.samples[:2],
        first_step=0,
        first_global_step=100,
        resumed_from=None,
    )


def test_the_best_evaluated_step_is_the_highest_and_the_earliest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes, accuracies = Notes(), iter([0.25, 0.5, 0.5, 0.25])
    monkeypatch.setattr(stage_run, "score_policy", lambda *_: {"accuracy": next(accuracies)})
    run = opened(notes, tmp_path, ["evaluate.every_steps=3", "save_every_steps=0"])
    for step in range(1, 14):
        run.end_step(ENGINE, step, {"loss": 1.0})
    assert {row["step"]: row["eval/accuracy"] for row in notes.rows if "eval/accuracy" in row} == {
        3: 0.25,
        6: 0.5,
        9: 0.5,
        12: 0.25,
    }
    assert [state.step for state in notes.states] == [3, 6, 9, 12], "each evaluated step is saved"
    assert [state.best.step for state in notes.states if state.best] == [3, 6, 6, 6]
    assert run.best is not None and run.best.checkpoint == "checkpoint-106"


@pytest.mark.parametrize(
    ("keys", "name", "saved"),
    [
        (["save_every_steps=3"], "grpo", [3, 6]),
        (["save_every_steps=3", "grpo.save_every_steps=2"], "grpo", [2, 4, 6]),
        (["save_every_steps=3", "grpo.save_every_steps=2"], "sft", [3, 6]),
        (["save_every_steps=3", "grpo.save_every_steps=0"], "grpo", []),
        # Steps end at minute 1, 2, ..; a save by steps restarts the minutes too.
        (["save_every_steps=0", "save_every_minutes=2"], "sft", [2, 4, 6]),
        (["grpo.save_every_steps=3", "save_every_minutes=2"], "grpo", [2, 3, 5, 6]),
    ],
)
def test_checkpoints_by_steps_and_by_minutes(
    keys: list[str], name: str, saved: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes, now = Notes(), [0.0]
    monkeypatch.setattr(stage_run.time, "monotonic", lambda: now[0])
    run = opened(notes, tmp_path, keys, name)
    run.saved_at = 0.0
    for step in range(1, 8):
        now[0] += 60
        run.end_step(ENGINE, step, {})
    assert [state.step for state in notes.states] == saved
    assert notes.num_checks == 7, "a failed write ends the run at the next step"


def test_questions_inside_are_drawn_by_the_seed() -> None:
    held_out = cast(Any, list(range(50)))
    few = {
        seed: questions_inside(load_config([f"seed={seed}", "evaluate.num_questions_inside=9"]), held_out)
        for seed in (0, 1)
    }
    assert few[0] == sorted(set(few[0])) and len(few[0]) == len(few[1]) == 9 and few[0] != few[1]
    assert questions_inside(load_config([]), held_out) == held_out
    assert questions_inside(load_config(["evaluate.num_questions_inside=99"]), held_out) == held_out

"""Checkpoints from snapshots: equal files in the background and in the foreground, the best kept, errors raised."""

from __future__ import annotations

import json
import re
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from support.tiny_world import answer, tiny_world

from videoseek import checkpoint
from videoseek.batches.packing import pack_documents
from videoseek.checkpoint import (
    BestStep,
    CheckpointError,
    CheckpointWriter,
    TrainerState,
    complete_checkpoints,
    read_state,
    tidy,
)
from videoseek.config_merge import load_config
from videoseek.engine import OptimizerSettings, TrainEngine
from videoseek.files import write_json
from videoseek.stages.run_folder import rewind, rewind_state


class Training:
    """An engine on the tiny world: `train` makes an optimizer step, and `save` a checkpoint."""

    def __init__(self, stage: int) -> None:
        self.world = tiny_world()
        self.batch = pack_documents([self.world.replay(0, answer("A"))], self.world.packing)
        self.engine = TrainEngine(self.world.policy().train(), OptimizerSettings(), stage=stage)

    def train(self) -> None:
        self.engine.backward(-self.engine(self.batch)[0].mean(), last=True)
        assert self.engine.step(1e-3) > 0

    def save(self, writer: CheckpointWriter, output_dir: Path, step: int = 1, best: BestStep | None = None) -> None:
        state = TrainerState("sft", step, step, 0, 1, best)
        writer.save(output_dir, self.engine, self.world.vocabulary.tokenizer, output_dir, state, keep=2)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("stage", [0, 2])
def test_training_goes_on_while_a_snapshot_is_written(
    stage: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file waits for two optimizer steps; it holds the weights and moments before the steps."""
    training, waits = Training(stage), threading.Event()
    training.train()
    training.save(CheckpointWriter(in_background=False), tmp_path / "waited")
    save_file = checkpoint.save_file

    def late(*arguments: Any) -> None:
        assert waits.wait(60)
        save_file(*arguments)

    monkeypatch.setattr(checkpoint, "save_file", late)
    writer = CheckpointWriter(in_background=True)
    training.save(writer, tmp_path / "background")
    for _ in range(2):
        training.train()
        writer.check()
    assert complete_checkpoints(tmp_path / "background") == []
    waits.set()
    writer.wait()
    training.save(writer, tmp_path / "later")
    writer.wait()
    early, late_files = files(tmp_path / "background/checkpoint-1"), files(tmp_path / "later/checkpoint-1")
    assert early == files(tmp_path / "waited/checkpoint-1")
    assert {name for name in early if early[name] != late_files[name]} == {
        "model.safetensors",
        "state/rank-000.safetensors",
    }


def test_one_write_at_a_time_and_an_error_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training, writer = Training(0), CheckpointWriter(in_background=True)
    training.train()
    training.save(writer, tmp_path, step=1)
    training.save(writer, tmp_path, step=2)  # waits for the write before
    assert (tmp_path / "checkpoint-1/complete").is_file()
    writer.wait()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    training.save(writer, tmp_path, step=3)
    assert writer._pending is not None
    with pytest.raises(CheckpointError) as caught:
        while True:  # as the end of every step does
            writer.check()
    assert re.fullmatch(
        r".*/checkpoint-3 could not be saved: .*No space left on device; earlier ones are intact", str(caught.value)
    )
    assert [folder.name for folder in complete_checkpoints(tmp_path)] == ["checkpoint-1", "checkpoint-2"]
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-1", "checkpoint-2", "last"}


def test_the_best_checkpoint_is_never_rotated_away(tmp_path: Path) -> None:
    def saved(step: int, best: int, stage: str = "sft") -> set[str]:
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}/complete").touch()
        tidy(tmp_path, stage, BestStep(f"checkpoint-{best}", best, "eval/accuracy", 0.5), keep=1)
        assert (tmp_path / "last").resolve().name == f"checkpoint-{step}"
        return {folder.name.removeprefix("checkpoint-") for folder in complete_checkpoints(tmp_path)}

    assert saved(1, best=1) == {"1"}
    assert saved(2, best=1) == {"1", "2"}
    assert saved(3, best=1) == {"1", "3"}
    assert saved(4, best=4) == {"4"}
    assert saved(5, best=5, stage="grpo") == {"4", "5"}
    assert saved(6, best=5, stage="grpo") == {"4", "5", "6"}
    marked = json.loads((tmp_path / "best.json").read_text())
    assert {stage: entry["step"] for stage, entry in marked.items()} == {"sft": 4, "grpo": 5}
    assert marked["sft"]["metric"] == "eval/accuracy"


def test_a_rewound_run_has_no_best_step_without_a_checkpoint(tmp_path: Path) -> None:
    """The best of step 2 was step 1, whose checkpoint went when step 3 was better. `last` may name the checkpoint."""

    def saved(step: int, best: int) -> None:
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}/complete").touch()
        state = TrainerState("sft", step, step, 0, 1, BestStep(f"checkpoint-{best}", best, "eval/accuracy", best / 4))
        write_json(tmp_path / f"checkpoint-{step}/trainer_state.json", asdict(state))
        tidy(tmp_path, "sft", state.best, keep=2)

    config = load_config(["recipe=sft_rl"])
    for step, best in ((1, 1), (2, 1)):
        saved(step, best)
    point = tmp_path / "last"
    state = rewind_state(config, tmp_path, point)
    rewind(config, tmp_path, point, state)
    assert state.best is not None and (tmp_path / "last").resolve().name == "checkpoint-2"
    saved(3, 3)
    point = tmp_path / "checkpoint-2"
    state = rewind_state(config, tmp_path, point)
    rewind(config, tmp_path, point, state)
    assert state.best is None and json.loads((tmp_path / "best.json").read_text()) == {}
    assert (tmp_path / "last").resolve().name == "checkpoint-2"


def test_the_best_step_is_part_of_the_state(tmp_path: Path) -> None:
    training, best = Training(0), BestStep("checkpoint-1", 1, "eval/accuracy", 0.25)
    training.save(CheckpointWriter(in_background=False), tmp_path, best=best)
    assert read_state(tmp_path / "checkpoint-1").best == best

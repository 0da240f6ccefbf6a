from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from support.tiny_world import tiny_world

from videoseek.config_merge import load_config
from videoseek.stages import pipeline
from videoseek.stages.loading import Data
from videoseek.stages.stage_run import RunContext


def test_a_stage_gives_back_its_memory_before_the_next_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def note(what: str) -> None:
        done.append(what)

    engine = SimpleNamespace(release=lambda: note("release"))
    run = SimpleNamespace(finish=lambda *_: note("save"))
    monkeypatch.setattr(pipeline.StageRun, "open", lambda context, stage, *_: note(f"load {stage}") or run)
    monkeypatch.setattr(pipeline, "train_stage", lambda *_: engine)
    monkeypatch.setattr(pipeline, "write_model_card", lambda *_: None)  # reads what was saved
    monkeypatch.setattr(pipeline, "score_stage", lambda *_: note("score"))
    monkeypatch.setattr(pipeline, "free_memory", lambda: note("free"))
    config = load_config(["recipe=sft_rl", "stages=[sft,grpo]"])
    data = cast(Data, SimpleNamespace(held_out=tiny_world().samples, sft=[], rl=[]))
    context = RunContext(config, tmp_path, torch.device("cpu"))
    pipeline.run_stages(context, tmp_path, data, [])
    of_stage = ["save", "release", "free", "score", "free"]
    assert done == ["load sft", *of_stage, "load grpo", *of_stage]


def test_a_run_is_finished_when_every_stage_is_scored_and_reported(tmp_path: Path) -> None:
    config = load_config(["recipe=sft_rl", "stages=[sft,grpo]"])
    files = ["sft/complete", "grpo/complete", "evaluation-sft.json", "evaluation-grpo.json", "summary.json"]
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert not pipeline.is_finished(config, tmp_path)
    (tmp_path / "report.html").touch()
    assert pipeline.is_finished(config, tmp_path)
    for name in files:
        (tmp_path / name).unlink()
        assert not pipeline.is_finished(config, tmp_path), name
        (tmp_path / name).touch()

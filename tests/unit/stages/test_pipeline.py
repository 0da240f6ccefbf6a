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
    run = SimpleNamespace(environment=tiny_world().environment)
    monkeypatch.setattr(pipeline.StageRun, "open", lambda context, stage, *_: note(f"load {stage}") or run)
    monkeypatch.setattr(pipeline, "train_stage", lambda *_: engine)
    monkeypatch.setattr(pipeline, "save_weights", lambda *_: note("save"))
    monkeypatch.setattr(pipeline, "score_stage", lambda *_: note("score"))
    monkeypatch.setattr(pipeline, "free_memory", lambda: note("free"))
    config = load_config(["recipe=sft_rl", "stages=[sft,grpo]"])
    data = cast(Data, SimpleNamespace(held_out=tiny_world().samples, sft=[], rl=[]))
    context = RunContext(config, tmp_path, torch.device("cpu"))
    pipeline.run_stages(context, tmp_path, data, [])
    of_stage = ["save", "release", "free", "score", "free"]
    assert done == ["load sft", *of_stage, "load grpo", *of_stage]

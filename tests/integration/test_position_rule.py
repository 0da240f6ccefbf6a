"""A run for transformers 5's position rule: every stage follows it, and every folder says so."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from support.commands import forked, numbers, refused, run

from videoseek import ask
from videoseek.config import UsageError
from videoseek.config_merge import load_config
from videoseek.rollout.setup import load_policy

SHORT = ["stages=[sft,grpo]", "sft.steps=1", "grpo.steps=1", "save_every_steps=1", "evaluate.num_questions=1"]


def test_rule_of_the_training_stays_with_the_model(tiny: list[str], tmp_path: Path, output_dir: Path) -> None:
    arguments = [*tiny, *SHORT, f"output_dir={output_dir}"]
    forked([*arguments, "position_rule=hf5"], tmp_path)
    assert numbers(output_dir)[-1]["sampling/logp_diff_max"] < 1e-4, "rollout and trainer agree"
    assert "position_rule: hf5\n" in (output_dir / "config.yaml").read_text()
    for name in ("sft", "final", "last"):
        assert json.loads((output_dir / name / "config.json").read_text())["position_rule"] == "hf5"
        assert len({path.stat().st_mode for path in (output_dir / name).rglob("*") if path.is_file()}) == 1
    card = (output_dir / "final/README.md").read_text()
    assert "| position rule | `hf5` |" in card and "sft (1 steps), then grpo (1 steps) on clueworld:12" in card

    moved = tmp_path / "moved"
    shutil.copytree(output_dir / "final", moved)
    policy, _ = load_policy(moved, load_config(["recipe=sft_rl"]), torch.device("cpu"))
    assert policy.model.config.position_rule == "hf5"
    other = "position_rule=max_all"
    sentence = rf"position_rule=max_all: model '{moved}' was trained with hf5 \(its config.json\); leave the key out"
    with pytest.raises(UsageError, match=sentence):
        ask.main(["film.mp4", "Where?", f"model={moved}", other])
    evaluate = [sys.executable, "-m", "videoseek.evaluate"]
    said = run([f"model={moved}", other, f"output_dir={tmp_path / 'scores'}"], code=2, launcher=evaluate)
    assert "was trained with hf5" in said.splitlines()[-1]
    assert "was trained with hf5" in refused([*arguments, other, f"resume={output_dir / 'checkpoint-1'}"], tmp_path, 2)

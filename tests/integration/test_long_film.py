"""A film of three hours trains with the defaults of the 7B recipe: one step of SFT and one of GRPO."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.commands import REWARD, rows, run
from support.video_samples import write_long_film

from videoseek.samples.schema import write_samples
from videoseek.types import Sample

HOURS, FPS = 3, 4

#: The keys that differ from the recipe. All keys of `video`, `prompt`, `tdam` and `reward`, and the limits of turns and
#: of context, are the recipe's.
OVERRIDES = (
    "model=scratch dtype=float32 deepspeed.stage=0 device=cpu tracker=[] save_every_steps=0 "  # 7B needs GPUs of 80 GB
    "sft.steps=1 sft.samples_per_step=1 grpo.steps=1 grpo.prompts_per_step=1 grpo.group_size=2 "  # one step of each
    "rollout.max_new_tokens_per_turn=8 grpo.overlong=keep "  # random weights end no turn
)


@pytest.mark.thorough
@pytest.mark.timeout(1800)
def test_a_film_of_three_hours_trains_with_the_defaults_of_the_7b_recipe(tmp_path: Path) -> None:
    film = write_long_film(tmp_path / "film.mp4", HOURS * 3600 * FPS, FPS, size=(240, 280))
    assert film.stat().st_size * 8 / (HOURS * 3600) < 100_000, "bits per second"
    look = '<think>late</think>\n<grounding>{"temporal_segment": [9000, 9010], "sampling_strategy": "fine"}</grounding>'
    turns = (look, "<think>seen</think><answer>A</answer>")
    asked = {"question": "What is shown?", "answer": "A", "options": ("bars", "cards"), "clues": ((9000.0, 9010.0),)}
    sample = Sample(id="late", video=str(film), kind="clue_single_w_tool", turns=turns, **asked)
    write_samples(tmp_path / "data.jsonl", [sample])
    (tmp_path / "reward.py").write_text(REWARD)

    data = [f"data.sft=[{tmp_path / 'data.jsonl'}]", f"data.rl=[{tmp_path / 'data.jsonl'}]", "data.eval=[]"]
    own = [f"reward.functions=[{tmp_path / 'reward.py'}:by_ids]", f"output_dir={tmp_path / 'out'}"]
    said = run(["recipe=sft_rl_7b", *OVERRIDES.split(), *data, *own])

    steps = rows(tmp_path / "out")
    assert [(row["stage"], row["step"]) for row in steps] == [("sft", 1), ("grpo", 1)], said
    assert all(row["loss"] is not None and row["grad_norm"] > 0 for row in steps)
    assert steps[0]["num_tokens"] > 16_000
    (trajectories,) = (tmp_path / "out/trajectories").glob("*grpo*.jsonl")
    episodes = [json.loads(line) for line in trajectories.read_text().splitlines()]
    assert len(episodes) == 2
    for episode in episodes:
        overview = episode["clips"][0]
        assert len(overview["frame_seconds"]) == 768 and overview["end_seconds"] == pytest.approx(HOURS * 3600, abs=1)

"""Every packaged recipe loads, says what it is, and fits the code that reads it."""

from __future__ import annotations

import dataclasses
import re

import pytest

from videoseek.algorithms.advantages import KINDS as ADVANTAGES
from videoseek.algorithms.losses import LOSSES
from videoseek.batches.masks import RULES
from videoseek.config import VideoConfig
from videoseek.config_merge import config_keys, list_recipes, load_config
from videoseek.rewards.trajectory_guided import VARIANTS
from videoseek.trajectory.grammar import FORMATS
from videoseek.trajectory.wording import STYLES
from videoseek.video.quotas import FRAME_POLICIES

NAMES = list(list_recipes())


def test_the_recipes_that_the_readme_names_exist() -> None:
    assert set(NAMES) >= {"sft_rl", "sft", "grpo", "clue_base", "sft_rl_7b"}


@pytest.mark.parametrize("name", NAMES)
def test_recipe_loads(name: str) -> None:
    config = load_config([f"recipe={name}"])
    assert config.output_dir == f"runs/{name}"


@pytest.mark.parametrize("name", NAMES)
def test_recipe_head_is_a_manual(name: str) -> None:
    lines = list_recipes()[name].read_text(encoding="utf-8").splitlines()
    head = "\n".join(line for line in lines[: lines.index("")] if line.startswith("#"))
    assert re.search(rf"^# Launch .*recipe={name}\b", head, re.MULTILINE)
    assert re.search(r"^# (Needs|Hardware) ", head, re.MULTILINE)
    assert re.search(r"^# Change ", head, re.MULTILINE)
    assert len(lines) <= 100


def test_one_recipe_is_a_difference_from_another() -> None:
    whole, part = load_config(["recipe=sft_rl"]), load_config(["recipe=sft"])
    assert (part.sft, part.data, part.video) == (whole.sft, whole.data, whole.video)
    assert (whole.stages, part.stages) == (["direct", "sft", "grpo"], ["sft"])


def test_the_default_run_is_small() -> None:
    config = load_config([])
    assert (config.recipe, config.model) == ("sft_rl", "tiny")
    assert config.evaluate.num_questions >= 256
    assert config.evaluate.samples >= 4


@pytest.mark.parametrize(
    ("key", "table"),
    [
        ("grpo.loss", LOSSES),
        ("grpo.advantage", ADVANTAGES),
        ("prompt.format", FORMATS),
        ("prompt.style", STYLES),
        ("reward.variant", VARIANTS),
        ("tdam.rule", RULES),
        ("video.frame_policy", FRAME_POLICIES),
    ],
)
def test_choices_are_the_owners_table(key: str, table: object) -> None:
    assert set(config_keys()[key].limits["choices"]) == set(table)  # type: ignore[call-overload]


def test_video_keys_are_the_limits_of_the_video_floor() -> None:
    config = dataclasses.asdict(VideoConfig())
    del config["cache_megabytes"], config["stall_seconds"]
    assert VideoConfig(**config) == VideoConfig()

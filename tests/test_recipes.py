"""Every packaged recipe loads, says what it is, and fits the code that reads it."""

from __future__ import annotations

import math
import re

import pytest
from support.qwen_7b import published_model

from videoseek.algorithms.advantages import KINDS as ADVANTAGES
from videoseek.algorithms.losses import LOSSES
from videoseek.batches.masks import RULES
from videoseek.config_merge import config_keys, list_recipes, load_config
from videoseek.memory import ModelSizes, memory_line, training_memory
from videoseek.rewards.trajectory_guided import VARIANTS
from videoseek.trajectory.formats import FORMATS
from videoseek.trajectory.wording import STYLES

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


MEMORY_LINE = re.compile(r"^#   (\d+) GPUs?, (sft|grpo)(?:, (\S+))?: (.+)$", re.MULTILINE)


@pytest.mark.parametrize("name", [name for name in NAMES if "_7b" in name])
def test_a_7b_recipe_fits_the_hardware_of_its_header(name: str) -> None:
    text = list_recipes()[name].read_text(encoding="utf-8")
    config = load_config([f"recipe={name}"])
    sizes = ModelSizes.of(published_model(), config.lora)
    assert f"# Memory    {sizes.num_parameters:,} parameters" in text
    if sizes.num_adapters:
        assert f"{sizes.num_adapters:,} of adapters" in text
    gigabytes = re.search(r"^# Hardware .*? (\d+) GB", text, re.MULTILINE)
    assert gigabytes is not None
    lines = MEMORY_LINE.findall(text)
    assert {stage for _, stage, override, _ in lines if not override} == set(config.stages)
    for num_gpus, stage, override, written in lines:
        changed = load_config([f"recipe={name}", *override.split()])
        parts = training_memory(sizes, changed, stage, int(num_gpus))
        line = memory_line(parts)
        assert written in (line, line.partition(" = ")[0]), f"{num_gpus} GPUs, {stage} {override}: {line}"
        assert sum(parts.values()) / 2**30 <= 0.9 * int(gigabytes[1])


@pytest.mark.parametrize(
    ("stage", "override"),
    [
        ("sft", "deepspeed.stage=1"),
        ("grpo", "deepspeed.stage=1"),
        ("grpo", "deepspeed.stage=2"),
        ("grpo", "grpo.max_tokens_per_micro_batch=98304"),
    ],
)
def test_settings_that_the_7b_recipe_avoids_do_not_fit(stage: str, override: str) -> None:
    config = load_config(["recipe=sft_rl_7b", override])
    parts = training_memory(ModelSizes.of(published_model(), config.lora), config, stage, num_ranks=32)
    assert sum(parts.values()) / 2**30 > 0.9 * 80


def test_the_two_stages_of_sft_follow_each_other() -> None:
    first, second = load_config(["recipe=sft_stage1_7b"]), load_config(["recipe=sft_stage2_7b"])
    assert second.model == f"{first.output_dir}/final"
    assert (first.tdam.rule, second.tdam.rule, second.tdam.share) == ("off", "spans", 0.1)
    for config, num_rows in ((first, 123_737), (second, 16_282)):
        assert config.stages == ["sft"]
        assert config.sft.steps == math.ceil(num_rows / config.sft.samples_per_step)
        assert config.sft.warmup_steps == round(0.1 * config.sft.steps)


@pytest.mark.parametrize("name", [name for name in NAMES if "_7b" in name])
def test_an_unreadable_film_does_not_end_a_7b_run(name: str) -> None:
    assert load_config([f"recipe={name}"]).data.bad_samples == "skip"


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
    ],
)
def test_choices_are_the_owners_table(key: str, table: object) -> None:
    limits = config_keys()[key].limits
    assert set(limits.get("choices") or limits["choices_or_file"]) == set(table)  # type: ignore[call-overload]

"""The merge of defaults, recipes and arguments, and every sentence it refuses with."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from videoseek.config import TrainConfig, UsageError
from videoseek.config_merge import config_keys, config_yaml, load_config

#: The command line is a promise: a key that comes or goes changes this list in the same commit.
FROZEN_KEYS = """
recipe model output_dir seed resume stages save_every_steps save_every_minutes save_in_background keep_checkpoints
tracker tools device dtype grad_clip max_skipped_steps position_rule gradient_checkpointing
data.sft data.rl data.eval data.video_root data.video_prefixes data.bad_samples data.max_unreadable_share
data.group_by_film
video.overview_fps video.crop_fps video.overview_tokens video.coarse_tokens video.medium_tokens video.fine_tokens
video.min_frames video.max_frames video.max_tokens_per_grid video.min_window_seconds video.frame_policy
video.cache_megabytes video.stall_seconds video.overview_cache video.overview_cache_gigabytes video.prefetch
tdam.rule tdam.share
prompt.format prompt.style
lora.rank lora.alpha lora.targets
sft.steps sft.samples_per_step sft.max_tokens_per_micro_batch sft.learning_rate sft.warmup_steps sft.schedule
sft.weight_decay sft.betas sft.freeze_vision
grpo.steps grpo.prompts_per_step grpo.group_size grpo.loss grpo.advantage grpo.learning_rate grpo.warmup_steps
grpo.weight_decay grpo.clip_low grpo.clip_high grpo.kl_coef grpo.kl_kind grpo.overlong
grpo.max_resample_rounds grpo.save_every_steps grpo.updates_per_batch grpo.importance_cap
grpo.max_tokens_per_micro_batch grpo.freeze_vision
rollout.max_turns rollout.calls_per_turn rollout.tool_deadline_seconds
rollout.max_new_tokens_per_turn rollout.max_context_tokens rollout.temperature
rollout.top_p rollout.cache_tokens rollout.deadline_seconds
rollout.engine rollout.sync rollout.vllm_python rollout.vllm_options rollout.servers rollout.worker_restarts
rollout.worker_silence_seconds rollout.placement rollout.workers rollout.lag rollout.max_lag
reward.variant reward.decay reward.functions
deepspeed.stage deepspeed.offload
evaluate.num_questions evaluate.samples evaluate.every_steps evaluate.num_questions_inside evaluate.tasks
evaluate.data_root evaluate.limit evaluate.mode
evaluate.prompt_style evaluate.subtitles evaluate.final_answer evaluate.questions_per_batch evaluate.votes
evaluate.evidence evaluate.judge evaluate.judge_endpoint evaluate.judge_api_key_env evaluate.endpoint
evaluate.api_key_env evaluate.image_detail evaluate.send_sampling evaluate.prompt_price evaluate.completion_price
evaluate.shard evaluate.papers
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text("sft:\n  steps: 7\n")
    return path


def load(recipe: Path, *arguments: str) -> TrainConfig:
    return load_config([f"recipe={recipe}", *arguments])


def test_keys_are_frozen() -> None:
    assert list(config_keys()) == FROZEN_KEYS.split()


def test_every_key_has_help() -> None:
    assert [name for name, key in config_keys().items() if not key.limits.get("help")] == []


def test_defaults_are_within_their_own_limits(tmp_path: Path) -> None:
    empty = tmp_path / "empty.yaml"
    empty.write_text("# nothing\n")
    config = load_config([f"recipe={empty}"])
    assert config == dataclasses.replace(TrainConfig(), recipe=str(empty), output_dir="runs/empty")


def test_command_line_wins_over_recipe_and_defaults(recipe: Path) -> None:
    assert TrainConfig().sft.steps not in (7, 9)
    assert load(recipe).sft.steps == 7
    assert load(recipe, "sft.steps=9").sft.steps == 9
    assert load(recipe).sft.samples_per_step == TrainConfig().sft.samples_per_step


def test_base_chain_relative_and_packaged(tmp_path: Path) -> None:
    (tmp_path / "lower").mkdir()
    (tmp_path / "lower/first.yaml").write_text("base: sft_rl\nsft: {steps: 1, warmup_steps: 1}\n")
    (tmp_path / "lower/second.yaml").write_text("base: first.yaml\nsft: {steps: 2}\n")
    (tmp_path / "third.yaml").write_text("base: lower/second.yaml\nseed: 3\n")
    config = load_config([f"recipe={tmp_path / 'third.yaml'}"])
    assert (config.seed, config.sft.steps, config.sft.warmup_steps) == (3, 2, 1)
    assert config.prompt.style == "brief", "of the packaged sft_rl"


@pytest.mark.parametrize("argument", ["sft.steps=9", "--sft.steps=9"])
def test_key_and_value_may_share_an_argument(recipe: Path, argument: str) -> None:
    assert load(recipe, argument).sft.steps == 9


def test_key_and_value_may_take_two_arguments(recipe: Path) -> None:
    config = load_config(["--sft.steps", "9", "--recipe", str(recipe), "--tdam.rule", "off"])
    assert (config.sft.steps, config.tdam.rule) == (9, "off")


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("tdam.rule=off", "off"),
        ("resume=no", "no"),
        ("model=007", "007"),
        ("model=1e-6", "1e-6"),
        ("model=a=b", "a=b"),
        ("sft.learning_rate=1e-6", 1e-6),
        ("sft.learning_rate=1", 1.0),
        ("sft.freeze_vision=all", "all"),
        ("gradient_checkpointing=on", True),
        ("data.video_root=None", None),
        ("data.video_root=null", None),
        ("data.video_root=", None),
        ("grpo.importance_cap=None", None),
        ("grpo.importance_cap=1.5", 1.5),
        ("data.sft=a.jsonl", ["a.jsonl"]),
        ("data.sft=[a.jsonl, off]", ["a.jsonl", "off"]),
        ("data.sft=[clueworld:12, clueworld_base:6*2]", ["clueworld:12", "clueworld_base:6*2"]),
        ("data.eval=[]", []),
        ("sft.betas=[0.8, 0.9]", [0.8, 0.9]),
        ("stages=grpo", ["grpo"]),
        ("output_dir=out/{recipe}-x", "out/mine-x"),
        ("output_dir=run-${seed}", "run-0"),
    ],
    ids=lambda value: str(value),
)
def test_the_field_decides_the_type(recipe: Path, argument: str, value: object) -> None:
    name = argument.partition("=")[0]
    got = config_keys(load(recipe, argument))[name].value
    assert got == value
    assert type(got) is type(value)


def test_home_is_expanded_where_the_shell_does_not(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/her")
    config = load(recipe, "model=~/qwen", "data.sft=[~/a.jsonl, b~.jsonl]")
    assert config.model == "/home/her/qwen"
    assert config.data.sft == ["/home/her/a.jsonl", "b~.jsonl"]


@pytest.mark.parametrize("text", ["tdam: {rule: off}\nresume: no\n", "tdam.rule: off\nresume: 'no'\n"])
def test_yaml_words_stay_words(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.yaml").write_text(text)
    config = load_config([f"recipe={tmp_path / 'r.yaml'}"])
    assert (config.tdam.rule, config.resume) == ("off", "no")


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("sft.stepz=1", ["unknown key 'sft.stepz'", "sft.steps"]),
        ("group_size=4", ["unknown key 'group_size'", "grpo.group_size"]),
        ("tdam=off", ["unknown key 'tdam'", "tdam.rule", "tdam.share"]),
        ("sft.steps.x=1", ["unknown key 'sft.steps.x'", "sft.steps"]),
        ("=3", ["expected key=value", "'=3'"]),
        ("seed", ["expected key=value", "'seed'"]),
        ("--seed", ["--seed is no flag", "needs a value", "--help"]),
        ("model=", ["model must not be empty"]),
        ("output_dir=${nowhere}", ["cannot be resolved", "nowhere"]),
        ("+seed=1", ["'+seed=1'", "key=value"]),
        ("~seed", ["'~seed'", "key=value"]),
        ("seed=x", ["seed must be a whole number", "got 'x'", "command line"]),
        ("seed=1.5", ["seed must be a whole number", "got '1.5'"]),
        ("seed=null", ["seed must be a whole number", "got 'null'"]),
        ("seed=[1]", ["seed must be a whole number", "got ['1']"]),
        ("seed=-1", ["seed must be at least 0", "got -1"]),
        ("sft.learning_rate=fast", ["sft.learning_rate must be a number", "got 'fast'"]),
        ("sft.learning_rate=0", ["sft.learning_rate must be above 0"]),
        ("sft.learning_rate=nan", ["sft.learning_rate must be finite"]),
        ("sft.learning_rate=inf", ["sft.learning_rate must be finite"]),
        ("sft.freeze_vision=perhaps", ["sft.freeze_vision must be one of none, tower, all", "got 'perhaps'"]),
        ("sft.betas=[0.9]", ["sft.betas must be two numbers"]),
        ("sft.betas=[0.9, 1.0]", ["sft.betas must be below 1"]),
        ("sft.betas=[a, b]", ["sft.betas must be a list of numbers"]),
        ("data.sft=[a", ["data.sft=[a is not a list"]),
        ("data.sft=[]", ["data.sft is empty"]),
        ("data.rl=[]", ["data.rl is empty"]),
        ("sft.steps=-1", ["sft.steps must be at least 0"]),
        ("grpo.group_size=1", ["grpo.group_size must be at least 2", "got 1"]),
        ("tdam.share=1.1", ["tdam.share must be at most 1", "got 1.1"]),
        ("tdam.rule=spam", ["tdam.rule must be one of off, spans, turns, isolated, reference", "got 'spam'"]),
        ("video.overview_fps=0", ["video.overview_fps must be above 0"]),
        ("video.min_frames=800", ["video.min_frames 800 exceeds video.max_frames 768"]),
        ("stages=[sft, dance]", ["stages must be one of direct, sft, grpo", "got 'dance'"]),
        ("stages=[]", ["stages must name at least one"]),
        ("stages=[sft, sft]", ["none twice"]),
        ("lora.targets=[q_proj, w1]", ["lora.targets must be one of q_proj", "down_proj", "got 'w1'"]),
        ("lora.targets=[]", ["lora.targets must name at least one matrix"]),
        ("deepspeed.stage=4", ["deepspeed.stage must be one of 0, 1, 2, 3", "got 4"]),
        ("deepspeed.offload=true", ["deepspeed.offload=true needs a deepspeed.stage of 1 or more"]),
        ("grpo.updates_per_batch=99", ["grpo.updates_per_batch 99 exceeds grpo.prompts_per_step 32"]),
        ("rollout.lag=2", ["rollout.lag must be one of 0, 1", "got 2"]),
        ("rollout.lag=1 and rollout.max_lag=0", ["rollout.max_lag=0 would drop every group of rollout.lag=1"]),
        ("rollout.lag=1 and grpo.importance_cap=null", ["rollout.lag=1 needs grpo.importance_cap", "got null"]),
        ("rollout.cache_tokens=0", ["rollout.cache_tokens must be at least 1", "got 0"]),
        ("resume=nowhere", ["resume must be no, auto or an existing checkpoint folder", "got 'nowhere'"]),
        ("model=${nowhere}", ["cannot be resolved", "nowhere"]),
        ("model=${open", ["model must be text", "got '${open'"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refusals_name_key_value_and_what_is_allowed(recipe: Path, argument: str, words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        load(recipe, *argument.split(" and "))
    message = str(caught.value)
    assert "\n" not in message
    assert [word for word in words if word not in message] == [], message


def test_unknown_recipe_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"recipe 'sft_lr' is neither a file nor one of .*sft_rl"):
        load_config(["recipe=sft_lr"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("base: mine.yaml\n", "leads back to"),
        ("base: other.yaml\n", "leads back to"),
        ("base: nowhere\n", "recipe 'nowhere' is neither"),
        ("- a\n- b\n", "must hold `key: value` lines, got a list"),
        ("just words\n", "must hold `key: value` lines, got a str"),
        ("a: [1\n", "cannot be read"),
        ("sft:\n  stepz: 3\n", "unknown key 'sft.stepz' in"),
        ("sft:\n  steps: {a: 1}\n", "unknown key 'sft.steps.a' in"),
        ("sft:\n  base: sft_rl\n", "unknown key 'sft.base' in"),
        ("sft:\n  steps: many\n", "sft.steps must be a whole number, got 'many' in"),
    ],
)
def test_faulty_recipes_are_refused(recipe: Path, text: str, words: str) -> None:
    (recipe.parent / "other.yaml").write_text("base: mine.yaml\n")
    recipe.write_text(text)
    with pytest.raises(UsageError) as caught:
        load(recipe)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_recipe_that_is_not_text_is_refused(recipe: Path) -> None:
    recipe.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="cannot be read"):
        load(recipe)


def test_repeated_key_warns_and_the_last_wins(recipe: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert load(recipe, "seed=1", "--seed=2").seed == 2
    assert caplog.messages == ["seed is given twice: '2' replaces '1'"]


def test_written_configuration_gives_itself_again(tmp_path: Path) -> None:
    first = load_config(["recipe=sft_rl_7b", "tdam.rule=off", "data.video_root=null", "model=null", "seed=1"])
    written = tmp_path / "config.yaml"
    written.write_text(config_yaml(first))
    again = load_config([f"recipe={written}"])
    assert dataclasses.replace(again, recipe="sft_rl_7b") == first


def test_configuration_cannot_be_written_to(recipe: Path) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        load(recipe).sft.steps = 1  # type: ignore[misc]


def test_a_reward_that_cannot_read_the_call_format_is_refused() -> None:
    with pytest.raises(UsageError, match="reward.variant=public_code reads prompt.format=grounding only, got hermes"):
        load_config(["recipe=sft_rl", "reward.variant=public_code", "prompt.format=hermes"])

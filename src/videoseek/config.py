"""What a run is: one dataclass per owner, and the merge of code defaults < recipe chain < command line.

The dataclasses decide every type. YAML is read as plain text, so that `off`, `no` and `1e-6` mean what the field says
and not what YAML guesses. Nothing is written to a configuration after `load_config` returned it.
"""

from __future__ import annotations

import difflib
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

logger = logging.getLogger(__name__)


class UsageError(Exception):
    """The user asked for something that cannot be: one sentence, shown without a traceback, exit code 2."""


Settings = TypeVar("Settings")


def option(default: Any, help: str, **limits: Any) -> Any:
    """A field with its line of help (unit included) and its limits: choices, at_least, above, at_most, below."""
    metadata = {"help": help, **limits}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


FREEZES = ("none", "tower", "all")
DECODER_MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class DataConfig:
    sft: list[str] = option(
        ["clueworld"],
        "files of SFT trajectories as [FORMAT:]PATH[*WEIGHT], clueworld, or clueworld_base (perception only)",
    )
    rl: list[str] = option(["clueworld"], "files of RL questions as [FORMAT:]PATH[*WEIGHT], or clueworld")
    eval: list[str] = option(["clueworld"], "files of held-out questions as [FORMAT:]PATH, or clueworld")
    video_root: str | None = option(
        None, "folder that videos may not leave and relative ones start from (null: each data file's own)"
    )
    video_prefixes: list[str] = option(
        [], "FROM=>TO rules for the paths of videos in data files; the first that fits is applied"
    )
    bad_samples: str = option(
        "stop", "a record that cannot be used ends the run, or is passed over and named", choices=("stop", "skip")
    )
    num_sft: int = option(4096, "clueworld: number of SFT samples generated", at_least=1)
    num_rl: int = option(2048, "clueworld: number of RL questions generated", at_least=1)
    num_eval: int = option(512, "clueworld: number of held-out questions generated", at_least=1)
    cache_dir: str = option("~/.cache/videoseek", "folder for generated videos")


@dataclass(frozen=True)
class VideoConfig:
    overview_fps: float = option(2.0, "frames per second of the overview", above=0)
    crop_fps: float = option(2.0, "frames per second of a crop", above=0)
    overview_tokens: int = option(16384, "quota of the overview, in merged tokens of 28 x 28 px", at_least=1)
    coarse_tokens: int = option(2048, "quota of a coarse crop, in merged tokens", at_least=1)
    medium_tokens: int = option(4096, "quota of a medium crop, in merged tokens", at_least=1)
    fine_tokens: int = option(6144, "quota of a fine crop, in merged tokens", at_least=1)
    min_frames: int = option(4, "fewest frames of a clip", at_least=2)
    max_frames: int = option(768, "most frames of a clip", at_least=2)
    max_tokens_per_grid: int = option(768, "most merged tokens of one grid of 2 frames", at_least=1)
    min_window_seconds: float = option(1.0, "shortest window a crop shows, in seconds", above=0)
    frame_policy: str = option("linspace", "how frames are spread over a window", choices=("linspace", "uniform"))
    cache_megabytes: int = option(512, "memory for decoded clips, in MiB", at_least=0)
    decode_deadline_seconds: float | None = option(
        120.0, "most seconds a decode may take, in a process that can be killed (null: in the run's own)", at_least=0
    )


@dataclass(frozen=True)
class TDAMConfig:
    rule: str = option(
        "spans", "which rows lose sight of which video", choices=("off", "spans", "turns", "isolated", "reference")
    )
    share: float = option(0.1, "share of the tool-using samples that the rule is applied to", at_least=0, at_most=1)


@dataclass(frozen=True)
class PromptConfig:
    format: str = option("grounding", "how a call is written", choices=("grounding", "hermes"))
    style: str = option("full", "length of the system prompt", choices=("full", "brief"))


@dataclass(frozen=True)
class SFTConfig:
    steps: int = option(600, "optimizer steps", at_least=0)
    samples_per_step: int = option(256, "samples per optimizer step, over all ranks", at_least=1)
    max_tokens_per_micro_batch: int = option(40000, "tokens in one packed row", at_least=1)
    learning_rate: float = option(1e-5, "peak learning rate", above=0)
    warmup_steps: int = option(60, "steps of linear warm-up", at_least=0)
    schedule: str = option("cosine", "learning rate after the warm-up", choices=("cosine", "constant"))
    weight_decay: float = option(0.0, "decoupled weight decay", at_least=0)
    grad_clip: float = option(1.0, "largest gradient norm", above=0)
    betas: list[float] = option([0.9, 0.999], "the two moments' decay rates of AdamW", at_least=0, below=1)
    freeze_vision: str = option("tower", "vision weights kept as they are (tower: not the projector)", choices=FREEZES)


@dataclass(frozen=True)
class GRPOConfig:
    steps: int = option(400, "rollout batches", at_least=0)
    prompts_per_step: int = option(32, "questions per batch, over all ranks", at_least=1)
    group_size: int = option(16, "episodes per question", at_least=2)
    loss: str = option("grpo", "policy loss", choices=("grpo", "dr_grpo", "dapo", "gspo", "cispo"))
    advantage: str = option("grpo", "baseline and scale of a group's rewards", choices=("grpo", "dr_grpo", "rloo"))
    learning_rate: float = option(1e-6, "learning rate after the warm-up", above=0)
    warmup_steps: int = option(0, "optimizer steps of linear warm-up", at_least=0)
    weight_decay: float = option(0.01, "decoupled weight decay", at_least=0)
    grad_clip: float = option(1.0, "largest gradient norm", above=0)
    clip_low: float = option(0.2, "the probability ratio is clipped below 1 - clip_low", at_least=0, at_most=1)
    clip_high: float = option(0.3, "the probability ratio is clipped above 1 + clip_high", at_least=0)
    kl_coef: float = option(0.0, "weight of the distance to the starting model (0: no reference model)", at_least=0)
    kl_kind: str = option("k3", "estimator of that distance", choices=("k1", "k2", "k3"))
    over_limit: str = option(
        "exclude",
        "episodes out of turns, tokens or time: out of baseline and loss, out of the loss only, or kept",
        choices=("exclude", "mask", "keep"),
    )
    filter_zero_spread: bool = option(True, "sample again in place of groups whose rewards are all equal")
    max_resample_rounds: int = option(2, "most extra rollout rounds per batch for that", at_least=0)
    updates_per_batch: int = option(1, "optimizer steps per batch", at_least=1)
    importance_cap: float | None = option(
        2.0, "cap of the trainer-to-rollout probability ratio (null: no correction)", above=0
    )
    max_tokens_per_micro_batch: int = option(32768, "tokens in one packed row", at_least=1)
    freeze_vision: str = option("none", "vision weights kept as they are (tower: not the projector)", choices=FREEZES)


@dataclass(frozen=True)
class RolloutConfig:
    engine: str = option("native", "who generates", choices=("native",))
    max_turns: int = option(6, "most assistant turns of an episode", at_least=1)
    max_new_tokens_per_turn: int = option(8192, "most tokens sampled in a turn", at_least=1)
    max_context_tokens: int = option(32768, "most tokens of an episode, video included", at_least=1)
    temperature: float = option(1.0, "sampling temperature", above=0)
    top_p: float = option(1.0, "share of the probability mass that is sampled from", above=0, at_most=1)
    episodes_per_batch: int = option(64, "episodes generated side by side on a rank", at_least=1)
    deadline_seconds: float = option(600.0, "most seconds an episode may take", above=0)


@dataclass(frozen=True)
class RewardConfig:
    variant: str = option("strict", "form of the reward", choices=("strict", "paper", "public_code"))
    decay: float = option(0.05, "bonus lost per call beyond the clues", at_least=0, at_most=1)
    functions: list[str] = option([], "reward functions of your own, as FILE.py:FUNCTION, added with weight 1")


@dataclass(frozen=True)
class DeepSpeedConfig:
    stage: int = option(0, "ZeRO stage", choices=(0, 1, 2, 3))
    offload: bool = option(False, "keep optimizer states in host memory")


@dataclass(frozen=True)
class EvaluateConfig:
    num_questions: int = option(256, "held-out questions", at_least=1)
    samples: int = option(4, "sampled episodes per question, beside one greedy one", at_least=1)
    temperature: float = option(1.0, "sampling temperature of those", above=0)


@dataclass(frozen=True)
class LoRAConfig:
    rank: int = option(
        0,
        "rank of LoRA adapters, which are trained instead of the model's own weights (0: none, all is trained)",
        at_least=0,
    )
    alpha: int = option(32, "adapters count alpha / rank times", at_least=1)
    targets: list[str] = option(
        list(DECODER_MATRICES),
        "matrices of the decoder that get adapters; the vision tower gets none and is frozen",
        choices=DECODER_MATRICES,
    )


@dataclass(frozen=True)
class TrainConfig:
    recipe: str = option("sft_rl", "name of a packaged recipe, or a YAML file")
    model: str = option("tiny", "tiny (ships with the package), scratch (tiny, random weights), or a Qwen2.5-VL folder")
    output_dir: str = option("runs/{recipe}", "folder for everything that the run writes")
    seed: int = option(0, "of weights, data order, masks and sampling", at_least=0)
    resume: str = option("no", "no, auto (the last complete checkpoint in output_dir), or a checkpoint folder")
    stages: list[str] = option(["sft", "grpo"], "stages in order", choices=("direct", "sft", "grpo"))
    save_every_steps: int = option(50, "steps between checkpoints (0: at the end of a stage only)", at_least=0)
    keep_checkpoints: int = option(2, "newest checkpoints kept", at_least=1)
    device: str = option("auto", "where to run", choices=("auto", "cpu", "cuda"))
    dtype: str = option("float32", "type of weights and activations in the model", choices=("float32", "bfloat16"))
    gradient_checkpointing: bool = option(False, "compute activations anew in the backward pass: slower, less memory")
    data: DataConfig = field(default_factory=DataConfig)
    video: VideoConfig = field(default_factory=VideoConfig)
    tdam: TDAMConfig = field(default_factory=TDAMConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    sft: SFTConfig = field(default_factory=SFTConfig)
    grpo: GRPOConfig = field(default_factory=GRPOConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    deepspeed: DeepSpeedConfig = field(default_factory=DeepSpeedConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)


@dataclass(frozen=True)
class Key:
    """One settable field: dotted name, annotated type, value in the configuration at hand, metadata from `option`."""

    name: str
    type: Any
    value: Any
    limits: Mapping[str, Any]

    @property
    def optional(self) -> bool:
        return type(None) in get_args(self.type)

    @property
    def is_list(self) -> bool:
        return isinstance(self.value, list)

    def expected(self) -> str:
        names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
        arguments = [kind for kind in get_args(self.type) if kind is not type(None)]
        wanted = names[arguments[0] if arguments else self.type]
        if self.is_list:
            wanted = "a list such as [a, b]" if arguments == [str] else "a list of numbers such as [0.9, 0.95]"
        return wanted + (" or null" if self.optional else "")


def config_keys(config: Any = None, prefix: str = "") -> dict[str, Key]:
    """Every key by dotted name, in the order of declaration, with the values of `config` (without one: defaults)."""
    config = TrainConfig() if config is None else config
    hints = get_type_hints(type(config))
    keys: dict[str, Key] = {}
    for item in fields(config):
        name, value = prefix + item.name, getattr(config, item.name)
        if is_dataclass(value):
            keys |= config_keys(value, name + ".")
        else:
            keys[name] = Key(name, hints[item.name], value, item.metadata)
    return keys


def shipped_folder(name: str, in_checkout: str) -> Path:
    """A data folder of the package: beside this file once installed, at its place in the source tree otherwise."""
    installed = Path(__file__).parent / name
    return installed if installed.is_dir() else Path(__file__).parents[2] / in_checkout


def list_recipes() -> dict[str, Path]:
    """Packaged recipes by name."""
    return {path.stem: path for path in sorted(shipped_folder("recipes", "recipes").glob("*.yaml"))}


def find_recipe(name: str, folder: Path) -> Path:
    """A YAML file (relative ones start from `folder`) or a packaged recipe's name."""
    path = folder / Path(name).expanduser()
    if path.is_file():
        return path.resolve()
    known = list_recipes()
    if name in known:
        return known[name].resolve()
    raise UsageError(f"recipe {name!r} is neither a file nor one of {', '.join(known)}")


def load_config(arguments: Sequence[str]) -> TrainConfig:
    """Merge defaults, the recipe with its bases, and `key=value` arguments; refuse whatever does not fit.

    Raises UsageError with one sentence that names the key, the value and what is allowed.
    """
    overrides = parse_overrides(arguments)
    recipe = find_recipe(overrides.get("recipe", TrainConfig().recipe), Path.cwd())
    tree, keys = _writable(TrainConfig()), config_keys()
    for path in _recipe_chain(recipe):
        for name, value in _flatten(_read_yaml(path)):
            _assign(tree, keys, name, value, f"in {path}")
    for name, text in overrides.items():
        _assign(tree, keys, name, _parse_value(name, text), "on the command line")
    merged: TrainConfig = _finish(tree, keys)
    config = replace(merged, output_dir=merged.output_dir.replace("{recipe}", recipe.stem))
    check_config(config)
    return config


def load_settings(defaults: Settings, arguments: Sequence[str]) -> Settings:
    """`defaults`, a dataclass of `option` fields, with the `key=value` arguments in it. Raises UsageError."""
    tree, keys = _writable(defaults), config_keys(defaults)
    for name, text in parse_overrides(arguments).items():
        _assign(tree, keys, name, _parse_value(name, text), "on the command line")
    settings: Settings = _finish(tree, keys)
    check_limits(settings)
    return settings


def _writable(defaults: Any) -> DictConfig:
    """A typed tree of a dataclass's values; frozen dataclasses start out read-only."""
    tree: DictConfig = OmegaConf.structured(defaults)
    for node in (tree, *(child for child in tree.values() if isinstance(child, DictConfig))):
        OmegaConf.set_readonly(node, False)
    return tree


def _finish(tree: DictConfig, keys: Mapping[str, Key]) -> Any:
    """The tree as the dataclass it came from. Raises UsageError when a reference in it leads nowhere."""
    try:
        for name in keys:
            OmegaConf.update(tree, name, _expand_home(OmegaConf.select(tree, name)))
        return OmegaConf.to_object(tree)
    except OmegaConfBaseException as error:
        raise UsageError(f"the configuration cannot be resolved: {_first_line(error)}") from error


def config_yaml(config: TrainConfig) -> str:
    """The whole configuration as a recipe file that gives the same configuration again."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def parse_overrides(arguments: Sequence[str]) -> dict[str, str]:
    """`key=value`, `--key=value` and `--key value` as a mapping to raw text; the last of repeated keys wins."""
    overrides: dict[str, str] = {}
    rest = iter(arguments)
    for argument in rest:
        if argument.startswith(("+", "~")):
            raise UsageError(f"{argument!r}: keys are neither added with + nor deleted with ~; write key=value")
        name, equals, text = argument.removeprefix("--").partition("=")
        if argument.startswith("--") and not equals:
            text = next(rest, "--")
            if text.startswith("--"):
                raise UsageError(f"{argument} is no flag and, as a key, needs a value; --help lists both")
        elif not equals or not name:
            raise UsageError(f"expected key=value, got {argument!r}; --help lists the keys")
        if name in overrides:
            logger.warning("%s is given twice: %r replaces %r", name, text, overrides[name])
        overrides[name] = text
    return overrides


def check_config(config: TrainConfig) -> None:
    """Limits of single keys, then the few that bind two keys."""
    check_limits(config)
    if len(config.sft.betas) != 2:
        raise UsageError(f"sft.betas must be two numbers, got {config.sft.betas}")
    if not config.stages or len(set(config.stages)) != len(config.stages):
        raise UsageError(f"stages must name at least one stage and none twice, got {config.stages}")
    for name, files, stages in (("sft", config.data.sft, {"direct", "sft"}), ("rl", config.data.rl, {"grpo"})):
        if not files and stages & set(config.stages):
            raise UsageError(f"data.{name} is empty, but the stages {config.stages} train on it; name a JSONL file")
    video, grpo = config.video, config.grpo
    if video.min_frames > video.max_frames:
        raise UsageError(f"video.min_frames {video.min_frames} exceeds video.max_frames {video.max_frames}")
    if grpo.updates_per_batch > grpo.prompts_per_step:
        raise UsageError(
            f"grpo.updates_per_batch {grpo.updates_per_batch} exceeds grpo.prompts_per_step {grpo.prompts_per_step}"
        )
    if not config.lora.targets:
        raise UsageError("lora.targets must name at least one matrix, got []")
    if config.deepspeed.offload and config.deepspeed.stage == 0:
        raise UsageError("deepspeed.offload=true needs a deepspeed.stage of 1 or more; stage 0 has nothing to offload")
    if "grpo" in config.stages and config.rollout.episodes_per_batch < grpo.group_size:
        raise UsageError(
            f"rollout.episodes_per_batch {config.rollout.episodes_per_batch} is less than grpo.group_size "
            f"{grpo.group_size}; a group is generated side by side"
        )
    if config.resume not in ("no", "auto") and not Path(config.resume).is_dir():
        raise UsageError(f"resume must be no, auto or an existing checkpoint folder, got {config.resume!r}")


def check_limits(settings: Any) -> None:
    """Holds every value of a dataclass of `option` fields against its own limits. Raises UsageError."""
    for name, key in config_keys(settings).items():
        for value in key.value if key.is_list else [key.value]:
            if value is not None:
                _check_limits(name, value, key.limits)


def _check_limits(name: str, value: Any, limits: Mapping[str, Any]) -> None:
    if value == "":
        raise UsageError(f"{name} must not be empty")
    if "choices" in limits and value not in limits["choices"]:
        raise UsageError(f"{name} must be one of {', '.join(map(str, limits['choices']))}, got {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{name} must be finite, got {value}")
    rules = {
        "at_least": (lambda limit: value >= limit, "at least"),
        "above": (lambda limit: value > limit, "above"),
        "at_most": (lambda limit: value <= limit, "at most"),
        "below": (lambda limit: value < limit, "below"),
    }
    for rule, (holds, words) in rules.items():
        if rule in limits and not holds(limits[rule]):
            raise UsageError(f"{name} must be {words} {limits[rule]}, got {value}")


def _recipe_chain(recipe: Path) -> list[Path]:
    """The recipe and its bases, the outermost base first."""
    chain = [recipe]
    while (base := _read_yaml(chain[0]).get("base")) is not None:
        path = find_recipe(str(base), chain[0].parent)
        if path in chain:
            raise UsageError(f"the base of recipe {chain[0]} leads back to {path}")
        chain.insert(0, path)
    return chain


def _read_yaml(path: Path) -> dict[str, Any]:
    """A recipe's mapping with every scalar left as text."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"recipe {path} cannot be read: {_first_line(error)}") from error
    if content in (None, ""):
        return {}
    if not isinstance(content, dict):
        raise UsageError(f"recipe {path} must hold `key: value` lines, got a {type(content).__name__}")
    return content


def _flatten(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        elif (prefix, name) != ("", "base"):
            yield prefix + name, value


def _parse_value(name: str, text: str) -> Any:
    """Text stays text, except that `[..]` is a list."""
    if not text.startswith("["):
        return text
    try:
        return yaml.load(text, Loader=yaml.BaseLoader)
    except yaml.YAMLError as error:
        raise UsageError(f"{name}={text} is not a list: {_first_line(error)}") from error


def _assign(tree: DictConfig, keys: Mapping[str, Key], name: str, value: Any, where: str) -> None:
    if name not in keys:
        raise UsageError(f"unknown key {name!r} {where}; the closest are {', '.join(_closest(name, list(keys)))}")
    key = keys[name]
    if key.optional and value in ("null", "None", "none", "~", ""):
        value = None
    elif key.is_list and isinstance(value, str):
        value = [value]
    try:
        OmegaConf.update(tree, name, value)
    except OmegaConfBaseException as error:
        raise UsageError(f"{name} must be {key.expected()}, got {value!r} {where}") from error


def _expand_home(value: Any) -> Any:
    """A shell leaves the `~` of `key=~/folder` alone, so it is expanded here, in texts and lists of texts."""
    if isinstance(value, ListConfig):
        return [_expand_home(item) for item in value]
    return os.path.expanduser(value) if isinstance(value, str) else value


def _closest(name: str, known: list[str]) -> list[str]:
    """The three likeliest keys: a whole group when its name was given, else by spelling, with and without the group."""

    def likeness(candidate: str) -> float:
        whole = difflib.SequenceMatcher(None, name, candidate).ratio()
        last = difflib.SequenceMatcher(None, name.rpartition(".")[2], candidate.rpartition(".")[2]).ratio()
        return max(whole, 0.95 * last) + candidate.startswith(name + ".")

    return sorted(known, key=likeness, reverse=True)[:3]


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]

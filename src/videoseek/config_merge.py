"""Merges code defaults < recipe chain < command line, and refuses invalid keys and values.

The loader reads YAML as plain text: the field's type decides the meaning of `off`, `no` and `1e-6`, not YAML.
"""

from __future__ import annotations

import difflib
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from videoseek.config import TrainConfig, UsageError
from videoseek.files import shipped_folder

logger = logging.getLogger(__name__)

Settings = TypeVar("Settings")


@dataclass(frozen=True)
class Key:
    """One settable field: dotted name, annotated type, current value, metadata from `option`."""

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
        expected = names[arguments[0] if arguments else self.type]
        if self.is_list:
            expected = "a list such as [a, b]" if arguments == [str] else "a list of numbers such as [0.9, 0.95]"
        return expected + (" or null" if self.optional else "")


def config_keys(config: Any = None, prefix: str = "") -> dict[str, Key]:
    """Returns every key by dotted name, in the order of declaration, with the values of `config` or the defaults."""
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


def list_recipes() -> dict[str, Path]:
    """Returns the packaged recipes by name."""
    return {path.stem: path for path in sorted(shipped_folder("recipes", "recipes").glob("*.yaml"))}


def find_recipe(name: str, folder: Path) -> Path:
    """Returns the path of a recipe, given as YAML file (relative to `folder`) or as name of a packaged recipe."""
    path = folder / Path(name).expanduser()
    if path.is_file():
        return path.resolve()
    recipes = list_recipes()
    if name in recipes:
        return recipes[name].resolve()
    raise UsageError(f"recipe {name!r} is neither a file nor one of {', '.join(recipes)}")


def load_config(arguments: Sequence[str]) -> TrainConfig:
    """Merges defaults, the recipe with its bases, and `key=value` arguments, and refuses invalid input.

    Raises UsageError with one sentence: the key, the value and the allowed values.
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
    """Returns `defaults`, a dataclass of `option` fields, with the `key=value` arguments. Raises UsageError."""
    tree, keys = _writable(defaults), config_keys(defaults)
    for name, text in parse_overrides(arguments).items():
        _assign(tree, keys, name, _parse_value(name, text), "on the command line")
    settings: Settings = _finish(tree, keys)
    check_limits(settings)
    return settings


def _writable(defaults: Any) -> DictConfig:
    """Returns a writable typed tree of a dataclass's values, also for frozen dataclasses."""
    tree: DictConfig = OmegaConf.structured(defaults)
    for node in (tree, *(child for child in tree.values() if isinstance(child, DictConfig))):
        OmegaConf.set_readonly(node, False)
    return tree


def _finish(tree: DictConfig, keys: Mapping[str, Key]) -> Any:
    """Returns the tree as its original dataclass. Raises UsageError for a dangling reference."""
    try:
        for name in keys:
            OmegaConf.update(tree, name, _expand_home(OmegaConf.select(tree, name)))
        return OmegaConf.to_object(tree)
    except OmegaConfBaseException as error:
        raise UsageError(f"the configuration cannot be resolved: {_first_line(error)}") from error


def config_yaml(config: TrainConfig) -> str:
    """Returns the whole configuration as a recipe file. Loading the file gives an equal configuration."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def parse_overrides(arguments: Sequence[str]) -> dict[str, str]:
    """Parses `key=value`, `--key=value` and `--key value` to a mapping to raw text. The last of repeated keys wins."""
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
    """Checks the limits of single keys, then the few limits between two keys."""
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
    rollout = config.rollout
    if rollout.lag > rollout.max_lag:
        raise UsageError(f"rollout.max_lag={rollout.max_lag} would drop every group of rollout.lag={rollout.lag}")
    if rollout.lag and grpo.importance_cap is None:
        raise UsageError("rollout.lag=1 needs grpo.importance_cap, which corrects for the older weights; got null")
    if config.reward.variant != "strict" and config.prompt.format != "grounding":
        raise UsageError(
            f"reward.variant={config.reward.variant} reads prompt.format=grounding only, got {config.prompt.format}; "
            "reward.variant=strict reads every format"
        )
    if not config.lora.targets:
        raise UsageError("lora.targets must name at least one matrix, got []")
    if config.deepspeed.offload and config.deepspeed.stage == 0:
        raise UsageError("deepspeed.offload=true needs a deepspeed.stage of 1 or more; stage 0 has nothing to offload")
    if config.resume not in ("no", "auto") and not Path(config.resume).is_dir():
        raise UsageError(f"resume must be no, auto or an existing checkpoint folder, got {config.resume!r}")


def check_limits(settings: Any) -> None:
    """Checks every value of a dataclass of `option` fields against the field's limits. Raises UsageError."""
    for name, key in config_keys(settings).items():
        for value in key.value if key.is_list else [key.value]:
            if value is not None:
                _check_limits(name, value, key.limits)


def _check_limits(name: str, value: Any, limits: Mapping[str, Any]) -> None:
    if value == "":
        raise UsageError(f"{name} must not be empty")
    if "choices" in limits and value not in limits["choices"]:
        raise UsageError(f"{name} must be one of {', '.join(map(str, limits['choices']))}, got {value!r}")
    if "choices_or_file" in limits and value not in limits["choices_or_file"] and ".py:" not in value:
        raise UsageError(f"{name} must be one of {', '.join(limits['choices_or_file'])} or FILE.py:NAME, got {value!r}")
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
    """Returns the recipe and its bases, the outermost base first."""
    chain = [recipe]
    while (base := _read_yaml(chain[0]).get("base")) is not None:
        path = find_recipe(str(base), chain[0].parent)
        if path in chain:
            raise UsageError(f"the base of recipe {chain[0]} leads back to {path}")
        chain.insert(0, path)
    return chain


def _read_yaml(path: Path) -> dict[str, Any]:
    """Returns a recipe's mapping with every scalar as text."""
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
    """Returns text as text, and `[..]` as a list."""
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
    """Expands `~` in texts and lists of texts. A shell leaves the `~` of `key=~/folder` unchanged."""
    if isinstance(value, ListConfig):
        return [_expand_home(item) for item in value]
    return os.path.expanduser(value) if isinstance(value, str) else value


def _closest(name: str, known: list[str]) -> list[str]:
    """Returns the three likeliest keys: a whole group for a group's name, else by spelling, with and without group."""

    def likeness(candidate: str) -> float:
        whole = difflib.SequenceMatcher(None, name, candidate).ratio()
        last = difflib.SequenceMatcher(None, name.rpartition(".")[2], candidate.rpartition(".")[2]).ratio()
        return max(whole, 0.95 * last) + candidate.startswith(name + ".")

    return sorted(known, key=likeness, reverse=True)[:3]


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]

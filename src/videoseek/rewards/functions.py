"""User-defined reward functions under TRL's signature: keyword lists in, one number or None per episode out.

The name of a function is `FILE.py:FUNCTION`. Each batch makes one call with `prompts` and `completions` (lists of chat
messages), `completion_ids`, and every field of the sample as a list (`answer`, `clues`, `kind`, ..). The function must
take `**kwargs`, may be async, and returns a float per episode, or None for an episode out of its scope.
"""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from videoseek.rewards.trajectory_guided import REWARD_NAMES
from videoseek.types import Episode, Turn


class RewardFunctionError(Exception):
    """A user's reward function fails to load or violates the signature."""


@dataclass(frozen=True, slots=True)
class RewardFunction:
    """A loaded function. The log shows its rewards under `name`."""

    name: str
    function: Callable[..., Any]

    def __call__(self, episodes: Sequence[Episode]) -> list[float | None]:
        """Returns the reward of each episode, or None for an episode out of the function's scope."""
        if not episodes:
            return []
        values = self.function(**_columns(episodes))
        if inspect.iscoroutine(values):
            values = asyncio.run(values)
        if not isinstance(values, (list, tuple)) or len(values) != len(episodes):
            raise RewardFunctionError(f"reward function {self.name} must return a list of {len(episodes)} values")
        return [self._checked(value) for value in values]

    def _checked(self, value: object) -> float | None:
        if value is None:
            return None
        if isinstance(value, (bool, int, float)) and math.isfinite(value):
            return float(value)
        raise RewardFunctionError(f"reward function {self.name} returned {value!r}, must be a finite number or None")


def load_reward_functions(specs: Sequence[str]) -> list[RewardFunction]:
    """Loads all reward functions of a run. All names must be distinct from each other and from the rule's parts."""
    functions = [load_reward_function(spec) for spec in specs]
    taken = set(REWARD_NAMES)
    for spec, function in zip(specs, functions, strict=True):
        if function.name in taken:
            raise RewardFunctionError(
                f"reward function {spec!r} has the name of another one or of a part of the rule's reward "
                f"({', '.join(REWARD_NAMES)}); rewards are logged by name, so each needs its own"
            )
        taken.add(function.name)
    return functions


def load_reward_function(spec: str) -> RewardFunction:
    """Loads `FILE.py:FUNCTION`. The file is the user's own code and runs with the user's rights."""
    path_text, separator, name = spec.rpartition(":")
    path = Path(path_text).expanduser()
    if not separator or path.suffix != ".py" or not name.isidentifier():
        raise RewardFunctionError(f"reward function {spec!r} must read FILE.py:FUNCTION")
    if not path.is_file():
        raise RewardFunctionError(f"reward function {spec!r}: there is no file {path}")
    module_spec = importlib.util.spec_from_file_location(path.stem, path)
    assert module_spec is not None and module_spec.loader is not None  # a .py file always has a loader
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        raise RewardFunctionError(f"reward function {spec!r}: {path} failed to load: {error!r}") from error
    function = vars(module).get(name)
    if not callable(function):
        raise RewardFunctionError(f"reward function {spec!r}: {path} defines no function {name}")
    kinds = {parameter.kind for parameter in inspect.signature(function).parameters.values()}
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        raise RewardFunctionError(f"reward function {spec!r} must take **kwargs: every field of a sample is passed")
    return RewardFunction(name, function)


def _messages(turns: Sequence[Turn]) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": turn.text} for turn in turns]


def _columns(episodes: Sequence[Episode]) -> dict[str, list[Any]]:
    """Returns TRL's three lists, then one list per field of the samples. The prompt ends before the first reply."""
    columns: dict[str, list[Any]] = {"prompts": [], "completions": [], "completion_ids": []}
    for episode in episodes:
        columns["prompts"].append(_messages([turn for turn in episode.turns if turn.end <= episode.prompt_length]))
        columns["completions"].append(_messages([turn for turn in episode.turns if turn.end > episode.prompt_length]))
        columns["completion_ids"].append(episode.token_ids[episode.prompt_length :])
        for name, value in asdict(episode.sample).items():
            columns.setdefault(name, []).append(value)
    return columns

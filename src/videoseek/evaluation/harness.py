"""A model folder behind the two calls that other harnesses know: load a model, and answer a text about a film.

Frames, tool, turns and limits are those of `evaluate`; the words of a question are the harness's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from videoseek.command import recipe_of_model
from videoseek.config import UsageError
from videoseek.config_merge import load_config
from videoseek.distributed import choose_device, seed_everything
from videoseek.evaluation.extract import scope
from videoseek.evaluation.runner import TaskRun, open_model, reply
from videoseek.evaluation.tasks.task import PromptStyle, Task
from videoseek.model.load import model_folder
from videoseek.rollout.setup import sampling_settings
from videoseek.types import Sample

#: Keys whose work the harness does itself.
_OF_THE_HARNESS = ("subtitles", "votes", "judge", "limit", "shard")


class HarnessModel:
    """A model in a harness of the prompt style `style`. `keys` are those of `evaluate`, by their whole names.

    A model in a run's folder loads the run's config.yaml. Raises UsageError and ModelError.
    """

    def __init__(self, style: str, system: str, model: str, keys: Mapping[str, object]) -> None:
        """`system` is the harness's system turn in the modes without a tool."""
        if refused := sorted({f"evaluate.{name}" for name in _OF_THE_HARNESS} & keys.keys()):
            raise UsageError(f"{refused[0]} is no key of a model in another harness, which does that work itself")
        given = [f"{name}={value}" for name, value in {"model": model, "evaluate.prompt_style": style, **keys}.items()]
        self._config = config = load_config(recipe_of_model(given))
        seed_everything(config.seed)
        folder = model_folder(config.model, config.position_rule)
        loaded = open_model(config, folder, choose_device(config.device))
        task = Task(name=style, citation="", files=(), styles={style: PromptStyle(source=style, system=system)})
        self._texts: dict[str, str] = {}
        self._engine = loaded.engine(TaskRun(task, config, [], Path()).environment(loaded.environment, self._texts))

    def answer(self, asked: Sequence[tuple[str, str]]) -> list[str]:
        """Returns the answer to each pair of film and text, without tags and reasoning; "" for an unreadable film."""
        samples = [
            Sample(id=f"question {number}", video=film, question=text, answer="unknown", kind="clue_single_w_tool")
            for number, (film, text) in enumerate(asked)
        ]
        self._texts.clear()
        self._texts.update({sample.id: sample.question for sample in samples})
        settings = sampling_settings(self._config, temperature=0.0)
        groups = self._engine.rollout(samples, 1, self._config.seed, settings, skip_unreadable=True)
        return [scope(reply(group[0])).strip() if group else "" for group in groups]


def only_film(media: Sequence[object]) -> str:
    """Returns the path of a question's only film. Raises UsageError for other media."""
    if len(media) != 1 or not isinstance(media[0], str):
        kinds = ", ".join(type(item).__name__ for item in media) or "none"
        raise UsageError(f"a question must have one medium, the path of a film; this one has {kinds}")
    return media[0]

"""The plug for lmms-eval 0.7: `lmms-eval --model videoseek --model_args model=DIR` asks a model of ours.

lmms-eval finds `MANIFEST` by the entry point `lmms_eval.models`. Nothing else imports this file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest

from videoseek.evaluation.harness import HarnessModel, only_film

MANIFEST = ModelManifest(model_id="videoseek", chat_class_path="videoseek.evaluation.lmms_plug.VideoSeek")


class VideoSeek(lmms):
    """Answers the requests of a task with whole episodes. `keys` are those of `evaluate`, such as `evaluate.mode`."""

    is_simple = False

    def __init__(self, model: str, **keys: object) -> None:
        super().__init__()
        # lmms-eval adds its own sizes of batches; ours are evaluate.questions_per_batch.
        given = {name: value for name, value in keys.items() if name not in ("batch_size", "max_batch_size")}
        self._model = HarnessModel("lmms", "You are a helpful assistant.", model, given)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Returns an answer for each request. The limits are ours: the task's generation arguments have no effect."""
        args = (request.args for request in requests)
        asked = [_film_and_text(make(self.task_dict[task][split][row])) for _, make, _, row, task, split in args]
        return self._model.answer(asked)

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Raises NotImplementedError: tasks of other types are not for episodes."""
        raise NotImplementedError("model videoseek answers tasks of type generate_until")

    generate_until_multi_round = loglikelihood


def _film_and_text(messages: Sequence[dict[str, Any]]) -> tuple[str, str]:
    """Returns the film and the text of messages."""
    parts = [part for message in messages for part in message["content"]]
    texts = [part["text"] for part in parts if part["type"] == "text"]
    return only_film([part["url"] for part in parts if part["type"] != "text"]), "".join(texts)

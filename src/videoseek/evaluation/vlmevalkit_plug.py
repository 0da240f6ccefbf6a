"""The adapter for VLMEvalKit: add `"videoseek": partial(VideoSeek, model="DIR")` to `supported_VLM` in its config.py.

VLMEvalKit is in no package index. Tests hold the adapter to the contract of its base class; it never ran inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vlmeval.vlm.base import BaseModel

from videoseek.evaluation.harness import HarnessModel, only_film


class VideoSeek(BaseModel):
    """Answers questions about films with whole episodes. `keys` are those of `evaluate`, such as `evaluate.mode`."""

    INTERLEAVE = True
    VIDEO_LLM = True  # data sets give the film itself, and no frames
    allowed_types = ["text", "video"]

    def __init__(self, model: str, **keys: object) -> None:
        super().__init__()
        self._model = HarnessModel("vlmevalkit", "", model, keys)

    def generate_inner(self, message: Sequence[dict[str, Any]], dataset: str | None = None) -> str:
        """Returns the answer to a message: parts with a type and a value, one of them a film."""
        film = only_film([part["value"] for part in message if part["type"] != "text"])
        (answer,) = self._model.answer([(film, "".join(part["value"] for part in message if part["type"] == "text"))])
        return answer

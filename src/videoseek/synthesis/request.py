"""One request: what identifies it (without decoding a video), and its body as the endpoint takes it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from videoseek.synthesis.media import clip_identity, clip_parts
from videoseek.synthesis.prompts import SCHEMAS, prompt
from videoseek.synthesis.settings import SynthesisSettings
from videoseek.types import Clip


@dataclass(frozen=True, slots=True)
class Request:
    """`parts` are texts and clips in order. `shape` names the reply's schema. `repair` is an earlier reply to the same
    request and what was wrong with it."""

    shape: str
    parts: tuple[str | Clip, ...]
    repair: tuple[str, str] | None = None

    def digest(self, settings: SynthesisSettings) -> str:
        """SHA-256 of all that the reply depends on. Clips count by their files' content: nothing is decoded."""
        parts = [clip_identity(part) if isinstance(part, Clip) else part for part in self.parts]
        whole = self._frame(settings) | {"parts": parts, "media": settings.media, "repair": self.repair}
        text = json.dumps(whole, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    def body(self, settings: SynthesisSettings) -> dict[str, Any]:
        """The JSON of a chat completion; decodes the clips. Raises VideoError."""
        content: list[dict[str, Any]] = []
        for part in self.parts:
            content += clip_parts(part, settings.media) if isinstance(part, Clip) else [{"type": "text", "text": part}]
        frame = self._frame(settings)
        messages = [{"role": "system", "content": frame.pop("system")}, {"role": "user", "content": content}]
        if self.repair is not None:
            reply, problem = self.repair
            messages += [
                {"role": "assistant", "content": reply},
                {"role": "user", "content": prompt("repair", problem=problem)},
            ]
        return frame | {"messages": messages}

    def _frame(self, settings: SynthesisSettings) -> dict[str, Any]:
        """What a body holds beside the conversation."""
        frame: dict[str, Any] = {
            "model": settings.model,
            "max_completion_tokens": settings.max_completion_tokens,
            "system": prompt("system"),
        }
        if settings.temperature is not None:
            frame["temperature"] = settings.temperature
        if settings.response_format == "json_schema":
            schema = {"name": self.shape, "strict": True, "schema": SCHEMAS[self.shape]}
            frame["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif settings.response_format == "json_object":
            frame["response_format"] = {"type": "json_object"}
        return frame

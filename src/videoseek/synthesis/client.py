"""The requests of the pipeline: their parts, the checks of the replies, and one repair per request.

`StageClient` serves an item in a stage: the client checks replies and adds up usage.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from videoseek.endpoint import CallRefused, Client, Reply
from videoseek.synthesis.items import Usage
from videoseek.synthesis.prompts import SCHEMAS, prompt, schema_fault
from videoseek.synthesis.settings import SynthesisSettings
from videoseek.trajectory.media import clip_identity, clip_parts
from videoseek.types import Clip

#: Checks a reply that satisfies its schema: returns one sentence on the first fault, or None.
Rule = Callable[[dict[str, Any]], str | None]

_FENCE = re.compile(r"\s*```(?:json)?\s*\n(.*?)\n?\s*```\s*", re.DOTALL)


class ItemRejected(Exception):
    """An item fails a stage: a stable code and a sentence."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Request:
    """The texts and clips of a request in order, the schema's name, and for a repair an earlier reply and the fault."""

    schema: str
    parts: tuple[str | Clip, ...]
    repair: tuple[str, str] | None = None

    def digest(self, settings: SynthesisSettings) -> str:
        """Returns the SHA-256 of everything that determines the reply.

        The content of the files identifies the clips, so the cache finds a reply without decoding.
        """
        parts = [clip_identity(part) if isinstance(part, Clip) else part for part in self.parts]
        content = self._options(settings) | {"parts": parts, "media": settings.media, "repair": self.repair}
        text = json.dumps(content, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    def body(self, settings: SynthesisSettings) -> dict[str, Any]:
        """Returns the JSON of a chat completion. Decodes the clips. Raises VideoError."""
        content: list[dict[str, Any]] = []
        for part in self.parts:
            content += clip_parts(part, settings.media) if isinstance(part, Clip) else [{"type": "text", "text": part}]
        options = self._options(settings)
        messages = [{"role": "system", "content": options.pop("system")}, {"role": "user", "content": content}]
        if self.repair is not None:
            reply, problem = self.repair
            messages += [
                {"role": "assistant", "content": reply},
                {"role": "user", "content": prompt("repair", problem=problem)},
            ]
        return options | {"messages": messages}

    def _options(self, settings: SynthesisSettings) -> dict[str, Any]:
        """Returns the fields of a body besides the user's messages."""
        options: dict[str, Any] = {
            "model": settings.model,
            "max_completion_tokens": settings.max_completion_tokens,
            "system": prompt("system"),
        }
        if settings.temperature is not None:
            options["temperature"] = settings.temperature
        if settings.response_format == "json_schema":
            schema = {"name": self.schema, "strict": True, "schema": SCHEMAS[self.schema]}
            options["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif settings.response_format == "json_object":
            options["response_format"] = {"type": "json_object"}
        return options


class StageClient:
    """Sends the requests of a stage about an item. `usage` adds up the cost of all requests, cached ones included."""

    def __init__(self, client: Client[SynthesisSettings]) -> None:
        self.settings = client.settings
        self.usage = Usage()
        self._client = client

    async def ask(self, schema: str, parts: list[str | Clip], rule: Rule) -> dict[str, Any]:
        """Returns a reply that satisfies the schema and the rule.

        The client sends a faulty reply back once together with the fault. Raises ItemRejected for a faulty second
        reply.
        """
        request = Request(schema, tuple(parts))
        reply = await self._reply(request)
        value, problem = parse_reply(reply, schema, rule)
        if value is not None:
            return value
        repair = replace(request, repair=(reply.text, problem))
        value, problem = parse_reply(await self._reply(repair), schema, rule)
        if value is None:
            raise ItemRejected("invalid_reply", f"{schema}: {problem}")
        return value

    async def _reply(self, request: Request) -> Reply:
        try:
            # The digest reads the clips' files.
            digest = await asyncio.to_thread(request.digest, self.settings)
            reply = await self._client.reply(digest, partial(request.body, self.settings))
        except CallRefused as error:
            raise ItemRejected("request_refused", str(error)) from None
        num_repairs = 0 if request.repair is None else 1
        self.usage += Usage(1, num_repairs, reply.prompt_tokens, reply.completion_tokens)
        if not reply.text and reply.finish_reason == "content_filter":
            raise ItemRejected("content_filter", "the endpoint's content filter withheld the reply")
        return reply


def parse_reply(reply: Reply, schema: str, rule: Rule) -> tuple[dict[str, Any] | None, str]:
    """Returns the reply's JSON object, or None and a sentence for the model about the fault."""
    if reply.finish_reason == "length":
        return None, "it was cut off because it is too long; be shorter."
    # Models without structured output wrap JSON in Markdown fences, even against the prompt.
    fenced = _FENCE.fullmatch(reply.text)
    try:
        value = json.loads(fenced.group(1) if fenced else reply.text, parse_constant=_reject_constant)
    except (ValueError, RecursionError) as error:
        return None, f"it is not one JSON object ({error})."
    problem = schema_fault(value, schema) or rule(value)
    return (value, "") if problem is None else (None, problem)


def _reject_constant(name: str) -> None:
    """Refuses NaN and Infinity, numbers of Python outside JSON."""
    raise ValueError(f"{name} is no number in JSON")

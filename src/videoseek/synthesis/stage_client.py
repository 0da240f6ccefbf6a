"""From a request to a reply that holds: the cache first, then the endpoint, the shape, the stage's own rules, and one
round of repair that shows the model its error."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from weakref import WeakValueDictionary

from videoseek.synthesis.cache import Reply, ReplyCache
from videoseek.synthesis.endpoint import CallRefused, Endpoint
from videoseek.synthesis.items import Usage
from videoseek.synthesis.prompts import SCHEMAS
from videoseek.synthesis.request import Request
from videoseek.synthesis.settings import SynthesisSettings
from videoseek.types import Clip

#: A stage's own rule: what is wrong with a reply of the right shape, in one sentence, or None.
Rule = Callable[[dict[str, Any]], str | None]

_FENCE = re.compile(r"\s*```(?:json)?\s*\n(.*?)\n?\s*```\s*", re.DOTALL)
_MAX_SHOWN = 400


class Rejected(Exception):
    """The item does not pass: a stable code and one sentence."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


class Shared:
    """What all items of a run ask through. `num_asked` and `num_cached` count this run's calls and those it saved."""

    def __init__(self, settings: SynthesisSettings, endpoint: Endpoint) -> None:
        self.settings = settings
        self.num_asked = self.num_cached = 0
        self._endpoint = endpoint
        self._cache = ReplyCache(settings.cache_folder)
        self._under_way: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def reply(self, request: Request) -> Reply:
        """Raises CallRefused, CallFailed, EndpointError or VideoError."""
        digest = await asyncio.to_thread(request.digest, self.settings)
        # Two items may ask the very same thing at once; it is paid for once.
        lock = self._under_way.setdefault(digest, asyncio.Lock())
        async with lock:
            reply = self._cache.get(digest)
            if reply is not None:
                self.num_cached += 1
                self._endpoint.has_answered = True
                return reply
            async with self._endpoint.slots:
                body = await asyncio.to_thread(request.body, self.settings)
                reply = await self._endpoint.complete(body, digest)
            self._cache.put(digest, reply)
            self.num_asked += 1
            return reply


class Asker:
    """The questions that one stage has about one item; `usage` adds up what they cost, cached or not."""

    def __init__(self, shared: Shared) -> None:
        self.settings = shared.settings
        self.usage = Usage()
        self._shared = shared

    async def ask(self, shape: str, parts: list[str | Clip], rule: Rule) -> dict[str, Any]:
        """A reply of the shape that keeps the rule. Raises Rejected when it does not after one repair."""
        request = Request(shape, tuple(parts))
        reply = await self._reply(request)
        value, problem = checked(reply, shape, rule)
        if value is not None:
            return value
        repair = replace(request, repair=(reply.text, problem))
        value, problem = checked(await self._reply(repair), shape, rule)
        if value is None:
            raise Rejected("invalid_reply", f"{shape}: {problem}")
        return value

    async def _reply(self, request: Request) -> Reply:
        try:
            reply = await self._shared.reply(request)
        except CallRefused as error:
            raise Rejected("request_refused", str(error)) from None
        repairs = 0 if request.repair is None else 1
        self.usage += Usage(1, repairs, reply.prompt_tokens, reply.completion_tokens)
        if not reply.text and reply.finish_reason == "content_filter":
            raise Rejected("content_filter", "the endpoint's content filter withheld the reply")
        return reply


def checked(reply: Reply, shape: str, rule: Rule) -> tuple[dict[str, Any] | None, str]:
    """The reply's object, or None and what is wrong with it in one sentence that can be shown to the model."""
    if reply.finish_reason == "length":
        return None, "it was cut off because it is too long; be shorter."
    try:
        value = json.loads(_unfenced(reply.text), parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        return None, f"it is not one JSON object ({error})."
    problem = shape_fault(value, shape) or rule(value)
    return (value, "") if problem is None else (None, problem)


def shape_fault(value: Any, shape: str) -> str | None:
    """Where and how a JSON value departs from the schema of a shape."""
    import jsonschema  # an extra: the rest of the package is read without it

    fault = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(SCHEMAS[shape]).iter_errors(value))
    if fault is None:
        return None
    where = "".join(f"[{step!r}]" for step in fault.absolute_path)
    return f"it has not the shape asked for: {where} {fault.message[:_MAX_SHOWN]}."


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number in JSON")


def _unfenced(text: str) -> str:
    """Models without structured output put their JSON between Markdown fences, however they are asked."""
    fenced = _FENCE.fullmatch(text)
    return fenced.group(1) if fenced else text

"""Sends requests to the endpoint: reply cache, retries with backoff, reply checks, and one repair per request.

`Client` serves all items of a run. `StageClient` serves an item in a stage: the client checks replies and adds up
usage.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import TracebackType
from typing import Any
from weakref import WeakValueDictionary

from videoseek.files import write_json
from videoseek.samples.schema import DataError
from videoseek.synthesis.items import Usage
from videoseek.synthesis.media import clip_identity, clip_parts
from videoseek.synthesis.prompts import SCHEMAS, prompt, schema_fault
from videoseek.synthesis.settings import SynthesisSettings, read_key
from videoseek.types import Clip

#: Checks a reply that satisfies its schema: returns one sentence on the first fault, or None.
Rule = Callable[[dict[str, Any]], str | None]

#: Statuses besides 5xx that allow another try.
_TRANSIENT_STATUSES = frozenset((408, 409, 425, 429))
#: Statuses that refuse a request for its length or for an unsupported part. Other requests may succeed.
_REFUSED_STATUSES = frozenset((400, 413, 422))
#: Number of calls in a row without an answer, or number of refusals before the first answer, that ends the run.
MAX_FAILURES_IN_A_ROW = 8
FIRST_WAIT_SECONDS = 1.0
_MAX_QUOTE_CHARACTERS = 300
_FENCE = re.compile(r"\s*```(?:json)?\s*\n(.*?)\n?\s*```\s*", re.DOTALL)


class EndpointError(Exception):
    """The endpoint is unusable. The run ends with exit code 1 and the error's sentence."""


class CallFailed(Exception):
    """A request got no answer after all tries. A later run may try the request again."""


class CallRefused(Exception):
    """The endpoint refused a request and would refuse the request again."""


class ItemRejected(Exception):
    """An item fails a stage: a stable code and a sentence."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


class _TransientError(Exception):
    """A try failed, and another try may succeed."""

    def __init__(self, problem: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.retry_after_seconds = retry_after_seconds


@dataclass(frozen=True, slots=True)
class Reply:
    """A finished answer of the endpoint. `id` is the endpoint's own id, perhaps listed on the bill."""

    id: str
    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


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


class ReplyCache:
    """A folder of replies. Each reply has a file, named by the digest of the request.

    Several processes and machines may share the folder: each write is atomic. A file holds the reply only, without
    pictures, question or key.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, digest: str) -> Reply | None:
        """Returns a cached reply, or None. Raises DataError for a file of another program."""
        path = self._path(digest)
        try:
            return Reply(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise DataError(f"{path} is not a cached reply ({error}); delete it to ask again") from error

    def put(self, digest: str, reply: Reply) -> None:
        path = self._path(digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, asdict(reply))

    def _path(self, digest: str) -> Path:
        return self._folder / digest[:2] / f"{digest}.json"


class Client:
    """Returns replies from the cache or from the endpoint. Use the client as an async context.

    At most `settings.concurrency` requests are decoded and in flight at once. `num_requests` counts the replies from
    the endpoint, `num_cached` the replies from the cache. The client reads the API key from the environment, passes the
    key to the `openai` client and removes the key from every returned text.
    """

    def __init__(self, settings: SynthesisSettings) -> None:
        self.settings = settings
        self.num_requests = self.num_cached = 0
        self._key = read_key(settings.api_key_env)
        self._cache = ReplyCache(settings.cache_folder)
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._failures_in_a_row = self._num_refused = 0
        #: Whether the endpoint has ever answered, in this run or, by evidence of the cache, in an earlier run.
        self._has_answered = False

    async def __aenter__(self) -> Client:
        import openai  # belongs to the extra `data`; the rest of the module imports without openai

        self._errors = openai
        self._api = openai.AsyncOpenAI(
            # The library insists on a key. An endpoint without keys ignores the header.
            api_key=self._key or "none",
            base_url=self.settings.endpoint,
            max_retries=0,
            timeout=self.settings.deadline_seconds,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._api.close()

    async def reply(self, request: Request) -> Reply:
        """Returns the reply to a request. Raises CallRefused, CallFailed, EndpointError, VideoError or DataError."""
        digest = await asyncio.to_thread(request.digest, self.settings)
        # Two items may send equal requests at once. Under the lock, the second item finds the first reply in the cache.
        lock = self._locks.setdefault(digest, asyncio.Lock())
        async with lock:
            reply = self._cache.get(digest)
            if reply is not None:
                self.num_cached += 1
                self._has_answered = True
                return reply
            async with self._slots:
                body = await asyncio.to_thread(request.body, self.settings)
                reply = await self._complete(body, random.Random(digest))
            self._cache.put(digest, reply)
            self.num_requests += 1
            return reply

    async def _complete(self, body: dict[str, Any], rng: random.Random) -> Reply:
        """Tries until the endpoint answers, with backoff. Raises CallRefused, CallFailed or EndpointError."""
        max_wait_seconds = self.settings.max_wait_seconds
        for attempt in range(self.settings.attempts):
            try:
                reply = await self._try(body)
            except _TransientError as error:
                problem, retry_after = error.problem, error.retry_after_seconds
            else:
                self._failures_in_a_row, self._has_answered = 0, True
                return reply
            if retry_after is not None and retry_after > max_wait_seconds:
                problem += f", and wants {retry_after:.0f} s of quiet (max_wait_seconds is {max_wait_seconds:g})"
                break
            if attempt + 1 < self.settings.attempts:
                await asyncio.sleep(wait_seconds(attempt, retry_after, max_wait_seconds, rng))
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= MAX_FAILURES_IN_A_ROW:
            raise EndpointError(f"{MAX_FAILURES_IN_A_ROW} calls in a row went unanswered; the last: {problem}")
        raise CallFailed(f"no answer after {attempt + 1} tries: {problem}")

    async def _try(self, body: dict[str, Any]) -> Reply:
        """Sends a body once. Raises _TransientError, CallRefused or EndpointError."""
        try:
            async with asyncio.timeout(self.settings.deadline_seconds):
                response = await self._api.chat.completions.with_raw_response.create(**body)
                content = response.content
        except (TimeoutError, self._errors.APITimeoutError):
            raise _TransientError(f"no answer within {self.settings.deadline_seconds:g} s") from None
        except self._errors.APIStatusError as error:
            raise self._status_error(error) from None
        except self._errors.APIConnectionError as error:
            raise _TransientError(f"the connection failed ({self._quote(str(error.__cause__ or error))})") from None
        except Exception as error:
            # openai passes on the exception of the transport, httpx, for a truncated body of an error response.
            if not type(error).__module__.startswith("httpx"):
                raise
            raise _TransientError(f"the connection failed ({type(error).__name__})") from None
        try:
            reply = read_completion(content.decode("utf-8", "replace"))
        except (ValueError, RecursionError) as error:
            problem = f"the endpoint sent what is no chat completion ({self._redact(str(error))})"
            raise _TransientError(problem) from None
        id_, text, reason = map(self._redact, (reply.id, reply.text, reply.finish_reason))
        return replace(reply, id=id_, text=text, finish_reason=reason)

    def _status_error(self, error: Any) -> Exception:
        """Translates an HTTP status of 400 or above into the exception for the run."""
        status = error.status_code
        problem = f"the endpoint says {status}: {self._quote(error.response.text)}"
        if status in _TRANSIENT_STATUSES or status >= 500:
            return _TransientError(problem, retry_after_seconds(error.response.headers, datetime.now(UTC)))
        if status in _REFUSED_STATUSES:
            self._num_refused += 1
            if self._num_refused >= MAX_FAILURES_IN_A_ROW and not self._has_answered:
                return EndpointError(f"the first {MAX_FAILURES_IN_A_ROW} calls were refused; the last: {problem}")
            return CallRefused(problem)
        return EndpointError(f"{problem} (endpoint {self.settings.endpoint}, model {self.settings.model})")

    def _redact(self, text: str) -> str:
        """Removes the key, also with slashes escaped for JSON."""
        if self._key:
            for spelling in (self._key, self._key.replace("/", "\\/")):
                text = text.replace(spelling, "[key]")
        return text

    def _quote(self, text: str) -> str:
        """Returns the endpoint's text without the key, on one line, shortened."""
        line = " ".join(self._redact(text).split())
        return line if len(line) <= _MAX_QUOTE_CHARACTERS else line[:_MAX_QUOTE_CHARACTERS] + "..."


class StageClient:
    """Sends the requests of a stage about an item. `usage` adds up the cost of all requests, cached ones included."""

    def __init__(self, client: Client) -> None:
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
            reply = await self._client.reply(request)
        except CallRefused as error:
            raise ItemRejected("request_refused", str(error)) from None
        num_repairs = 0 if request.repair is None else 1
        self.usage += Usage(1, num_repairs, reply.prompt_tokens, reply.completion_tokens)
        if not reply.text and reply.finish_reason == "content_filter":
            raise ItemRejected("content_filter", "the endpoint's content filter withheld the reply")
        return reply


def wait_seconds(attempt: int, retry_after: float | None, max_wait_seconds: float, rng: random.Random) -> float:
    """Returns the wait before the next try: doubled each time, jittered by half, and at least `retry_after` seconds.

    The jitter spreads the next tries of calls that failed together.
    """
    backoff_seconds = FIRST_WAIT_SECONDS * 2**attempt * rng.uniform(0.5, 1.5)
    return max(min(backoff_seconds, max_wait_seconds), retry_after or 0.0)


def retry_after_seconds(headers: Any, now: datetime) -> float | None:
    """Reads Retry-After, a number of seconds or a date. Returns None for a missing or unreadable header."""
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        return max(float(value), 0.0)
    except ValueError:
        pass
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max((date - now).total_seconds(), 0.0) if date.tzinfo is not None else None


def read_completion(text: str) -> Reply:
    """Parses the JSON of a chat completion. Raises ValueError with a sentence for anything else."""
    try:
        record = json.loads(text)
        choice = record["choices"][0]
        message, usage = choice["message"], record.get("usage") or {}
        reply = Reply(
            id=str(record.get("id", "")),
            text=message.get("content") or "",
            finish_reason=choice.get("finish_reason") or "",
            prompt_tokens=int(usage.get("prompt_tokens") or 0),
            completion_tokens=int(usage.get("completion_tokens") or 0),
        )
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from error
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"a field is missing: {type(error).__name__} {error}") from error
    if not isinstance(reply.text, str):
        raise ValueError("the message's content is no text")
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

"""Sends requests to the endpoint: reply cache, retries with backoff, reply checks, and one repair per request.

`Client` serves all items of a run. `StageClient` serves one item in one stage: it checks replies and adds up usage.
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

#: Besides 5xx, the statuses after which another try may succeed.
_TRANSIENT_STATUSES = frozenset((408, 409, 425, 429))
#: Statuses that refuse one request, because it is too long or has an unsupported part. Other requests may succeed.
_REFUSED_STATUSES = frozenset((400, 413, 422))
#: The run ends after this many calls in a row without an answer, or after this many refusals before the first answer.
MAX_FAILURES_IN_A_ROW = 8
FIRST_WAIT_SECONDS = 1.0
_MAX_QUOTE_CHARACTERS = 300
_FENCE = re.compile(r"\s*```(?:json)?\s*\n(.*?)\n?\s*```\s*", re.DOTALL)


class EndpointError(Exception):
    """The endpoint cannot be used at all. The run ends with exit code 1 and this sentence."""


class CallFailed(Exception):
    """One request got no answer after all tries. A later run may try it again."""


class CallRefused(Exception):
    """The endpoint refused one request and would refuse it again."""


class ItemRejected(Exception):
    """An item does not pass its stage: a stable code and one sentence."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


class _TransientError(Exception):
    """One try failed, and another try may succeed."""

    def __init__(self, problem: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.retry_after_seconds = retry_after_seconds


@dataclass(frozen=True, slots=True)
class Reply:
    """A finished answer of the endpoint. `id` is the endpoint's own id, which its bill may list."""

    id: str
    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Request:
    """`parts` are texts and clips in order. `schema` names the schema of the reply. `repair` holds an earlier reply to
    the same request and its fault."""

    schema: str
    parts: tuple[str | Clip, ...]
    repair: tuple[str, str] | None = None

    def digest(self, settings: SynthesisSettings) -> str:
        """Returns the SHA-256 of everything that the reply depends on.

        Clips are identified by the content of their files, so that a cached reply is found without decoding.
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
        """Returns what a body holds besides the user's messages."""
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
    """A folder of replies, one file each, named by the digest of the request.

    Several processes and machines may share the folder: each file is written atomically. A file holds the reply only:
    no picture, no question and no key is stored.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, digest: str) -> Reply | None:
        """Raises DataError for a file that holds no reply, which only another program can have written."""
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
    """Returns replies from the cache or from the endpoint. Use it as an async context.

    At most `settings.concurrency` requests are decoded and in flight at once. `num_requests` counts the replies that
    this run received, `num_cached` the replies that came from the cache. The API key is read from the environment,
    passed to the `openai` client and removed from every text that comes back.
    """

    def __init__(self, settings: SynthesisSettings) -> None:
        self.settings = settings
        self.num_requests = self.num_cached = 0
        self._key = read_key(settings.api_key_env)
        self._cache = ReplyCache(settings.cache_folder)
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._failures_in_a_row = self._num_refused = 0
        #: Whether the endpoint has ever answered, in this run or, as the cache shows, in an earlier one.
        self._has_answered = False

    async def __aenter__(self) -> Client:
        import openai  # belongs to the extra `data`; the rest of the module works without it

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
        """Raises CallRefused, CallFailed, EndpointError, VideoError or DataError."""
        digest = await asyncio.to_thread(request.digest, self.settings)
        # Two items may send equal requests at once. Under the lock, the second one finds the first reply in the cache.
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
        """Raises _TransientError, CallRefused or EndpointError."""
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
            # openai passes on the exception of its transport, httpx, if the body of an error response is cut off.
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
        """Translates an HTTP status of 400 or above into the exception that says what it means for the run."""
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
        """Removes the key, also in the spelling in which JSON may escape a slash."""
        if self._key:
            for spelling in (self._key, self._key.replace("/", "\\/")):
                text = text.replace(spelling, "[key]")
        return text

    def _quote(self, text: str) -> str:
        """Returns the endpoint's text without the key, on one line, shortened."""
        line = " ".join(self._redact(text).split())
        return line if len(line) <= _MAX_QUOTE_CHARACTERS else line[:_MAX_QUOTE_CHARACTERS] + "..."


class StageClient:
    """Sends the requests of one stage about one item. `usage` adds up their cost, cached or not."""

    def __init__(self, client: Client) -> None:
        self.settings = client.settings
        self.usage = Usage()
        self._client = client

    async def ask(self, schema: str, parts: list[str | Clip], rule: Rule) -> dict[str, Any]:
        """Returns a reply that satisfies the schema and the rule.

        A faulty reply is sent back once together with its fault. Raises ItemRejected if the second reply is faulty.
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

    The jitter keeps calls that failed together from coming back together.
    """
    backoff_seconds = FIRST_WAIT_SECONDS * 2**attempt * rng.uniform(0.5, 1.5)
    return max(min(backoff_seconds, max_wait_seconds), retry_after or 0.0)


def retry_after_seconds(headers: Any, now: datetime) -> float | None:
    """Reads Retry-After, a number of seconds or a date. Returns None if the header is missing or unreadable."""
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
    """Parses the JSON of a chat completion. Raises ValueError with one sentence for anything else."""
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
    """Returns the reply's JSON object, or None and its fault in one sentence that the model can be shown."""
    if reply.finish_reason == "length":
        return None, "it was cut off because it is too long; be shorter."
    # Models without structured output wrap their JSON in Markdown fences, whatever the prompt says.
    fenced = _FENCE.fullmatch(reply.text)
    try:
        value = json.loads(fenced.group(1) if fenced else reply.text, parse_constant=_reject_constant)
    except (ValueError, RecursionError) as error:
        return None, f"it is not one JSON object ({error})."
    problem = schema_fault(value, schema) or rule(value)
    return (value, "") if problem is None else (None, problem)


def _reject_constant(name: str) -> None:
    """Refuses NaN and Infinity, which Python reads although JSON has neither."""
    raise ValueError(f"{name} is no number in JSON")

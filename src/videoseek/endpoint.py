"""Sends chat completions to an OpenAI-compatible endpoint: reply cache, and retries with backoff and time limits."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

from videoseek.config import UsageError, option
from videoseek.files import write_json

#: Statuses besides 5xx that allow another try.
_TRANSIENT_STATUSES = frozenset((408, 409, 425, 429))
#: Statuses that refuse a request for its length or for an unsupported part. Other requests may succeed.
_REFUSED_STATUSES = frozenset((400, 413, 422))
#: Number of calls in a row without an answer, or number of refusals before the first answer, that ends the run.
MAX_FAILURES_IN_A_ROW = 8
FIRST_WAIT_SECONDS = 1.0
_MAX_QUOTE_CHARACTERS = 300


@dataclass(frozen=True)
class EndpointSettings:
    """The keys of every command that asks an endpoint."""

    endpoint: str = option("http://127.0.0.1:8000/v1", "base URL of an OpenAI-compatible endpoint")
    model: str | None = option(None, "name of the model at the endpoint")
    api_key_env: str | None = option(
        "OPENAI_API_KEY", "environment variable that holds the API key (null: the endpoint needs no key)"
    )
    temperature: float | None = option(0.0, "sampling temperature (null: the endpoint's default)", at_least=0)
    max_completion_tokens: int = option(4096, "maximum number of tokens of a reply", at_least=1)
    concurrency: int = option(16, "maximum number of requests in flight", at_least=1)
    attempts: int = option(6, "tries per request, if it times out or gets 429 or 5xx", at_least=1)
    deadline_seconds: float = option(180.0, "time limit of one try, in seconds", above=0)
    max_wait_seconds: float = option(120.0, "maximum wait before another try, Retry-After included", above=0)


Settings = TypeVar("Settings", bound=EndpointSettings)


class EndpointError(Exception):
    """The endpoint is unusable. The run ends with exit code 1 and the error's sentence."""


class CallFailed(Exception):
    """A request got no answer after all tries. A later run may try the request again."""


class CallRefused(Exception):
    """The endpoint refused a request and would refuse the request again."""


class CacheError(Exception):
    """A file in the cache of replies is of another program."""


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


class ReplyCache:
    """A folder of replies. Each reply has a file, named by the digest of the request.

    Several processes and machines may share the folder: each write is atomic. A file holds the reply only, without
    pictures, question or key.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, digest: str) -> Reply | None:
        """Returns a cached reply, or None. Raises CacheError for a file of another program."""
        path = self._path(digest)
        try:
            return Reply(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise CacheError(f"{path} is not a cached reply ({error}); delete it to ask again") from error

    def put(self, digest: str, reply: Reply) -> None:
        path = self._path(digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, asdict(reply))

    def _path(self, digest: str) -> Path:
        return self._folder / digest[:2] / f"{digest}.json"


class Client(Generic[Settings]):
    """Returns replies from the cache or from the endpoint. Use the client as an async context.

    At most `settings.concurrency` requests are decoded and in flight at once. `num_requests` counts the replies from
    the endpoint, `num_cached` the replies from the cache. The client reads the API key from the environment, passes the
    key to the `openai` client and removes the key from every returned text.
    """

    def __init__(self, settings: Settings, cache_folder: Path) -> None:
        self.settings = settings
        self.num_requests = self.num_cached = 0
        self._key = read_key(settings.api_key_env)
        self._cache = ReplyCache(cache_folder)
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._failures_in_a_row = self._num_refused = 0
        #: Whether the endpoint has ever answered, in this run or, by evidence of the cache, in an earlier run.
        self._has_answered = False

    async def __aenter__(self) -> Client[Settings]:
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

    async def reply(self, digest: str, make_body: Callable[[], dict[str, Any]]) -> Reply:
        """Returns the reply to a request. `digest` stands for all that determines the reply; a thread makes the body.

        Raises CallRefused, CallFailed, EndpointError or CacheError, and the errors of `make_body`.
        """
        # Two items may send equal requests at once. Under the lock, the second item finds the first reply in the cache.
        lock = self._locks.setdefault(digest, asyncio.Lock())
        async with lock:
            reply = self._cache.get(digest)
            if reply is not None:
                self.num_cached += 1
                self._has_answered = True
                return reply
            async with self._slots:
                body = await asyncio.to_thread(make_body)
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


def check_endpoint(settings: EndpointSettings) -> None:
    """Raises UsageError for an endpoint that is no plain URL."""
    url = urlsplit(settings.endpoint)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise UsageError(f"endpoint must be a URL such as http://127.0.0.1:8000/v1, got {settings.endpoint!r}")
    if url.username or url.password or url.query:
        raise UsageError(
            "endpoint must hold no user, password or query: the key comes from the variable in api_key_env"
        )


def read_key(variable: str | None) -> str | None:
    """Returns the key, or None if `variable` is None. Raises UsageError that names the variable and hides the value."""
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UsageError(
            f"environment variable {variable} holds no key; set it, or api_key_env=null if the endpoint wants none"
        )
    return key

"""The endpoint behind the `openai` client: tries again what may pass, refuses early what cannot, and keeps its key."""

from __future__ import annotations

import asyncio
import json
import os
import random
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any

from videoseek.config import UsageError
from videoseek.synthesis.cache import Reply
from videoseek.synthesis.settings import SynthesisSettings

#: Answers that another try may change; all others of 400 and above stay as they are.
_PASSING = frozenset((408, 409, 425, 429))
#: Refusals of one request, as too long or with a part that is not taken; other requests may pass.
_REFUSALS = frozenset((400, 413, 422))
#: This many calls without an answer in a row, or refused before any was answered, are not the requests' own fault.
PATIENCE = 8
_FIRST_WAIT_SECONDS = 1.0
_MAX_QUOTED = 300


class EndpointError(Exception):
    """The endpoint is of no use as it is: one sentence, ends the run with exit code 1."""


class CallFailed(Exception):
    """One request got no answer after all tries; another run may try again."""


class CallRefused(Exception):
    """The endpoint refuses this one request, and would refuse it again."""


class Endpoint:
    """Use as an async context. At most `concurrency` requests are decoded and under way at once.

    The key is read from the environment, handed to the client and taken out of every text that comes back.
    """

    def __init__(self, settings: SynthesisSettings) -> None:
        self._settings = settings
        self._key = read_key(settings.api_key_env)
        self._failed_in_a_row = self._num_refused = 0
        #: Whether requests like these are known to be taken: one was answered, in this run or, from the cache, before.
        self.has_answered = False
        self.slots = asyncio.Semaphore(settings.concurrency)

    async def __aenter__(self) -> Endpoint:
        import openai  # an extra: the rest of the package is read without it

        self._errors = openai
        self._client = openai.AsyncOpenAI(
            # The client wants some key; an endpoint without keys ignores the header.
            api_key=self._key or "none",
            base_url=self._settings.endpoint,
            max_retries=0,
            timeout=self._settings.deadline_seconds,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._client.close()

    async def complete(self, body: dict[str, Any], digest: str) -> Reply:
        """The finished reply. Raises CallRefused, CallFailed or EndpointError. `digest` seeds the jitter of waits."""
        chance = random.Random(digest)
        for attempt in range(self._settings.attempts):
            try:
                reply = await self._try(body)
            except _Passing as failure:
                problem, asked_seconds = failure.problem, failure.retry_after_seconds
            else:
                self._failed_in_a_row, self.has_answered = 0, True
                return reply
            if asked_seconds is not None and asked_seconds > self._settings.max_wait_seconds:
                allowed = f"max_wait_seconds is {self._settings.max_wait_seconds:g}"
                problem += f", and wants {asked_seconds:.0f} s of quiet ({allowed})"
                break
            if attempt + 1 < self._settings.attempts:
                longest = self._settings.max_wait_seconds
                await asyncio.sleep(wait_seconds(attempt, asked_seconds, longest, chance))
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= PATIENCE:
            raise EndpointError(f"{PATIENCE} calls in a row went unanswered; the last: {problem}")
        raise CallFailed(f"no answer after {attempt + 1} tries: {problem}")

    async def _try(self, body: dict[str, Any]) -> Reply:
        try:
            async with asyncio.timeout(self._settings.deadline_seconds):
                answer = await self._client.chat.completions.with_raw_response.create(**body)
                content = answer.content
        except (TimeoutError, self._errors.APITimeoutError):
            raise _Passing(f"no answer within {self._settings.deadline_seconds:g} s") from None
        except self._errors.APIStatusError as error:
            raise self._judged(error) from None
        except self._errors.APIConnectionError as error:
            raise _Passing(f"the connection failed ({self._quoted(str(error.__cause__ or error))})") from None
        except Exception as error:
            # An answer of 400 or above that is cut off reaches us as the transport's own exception.
            if not type(error).__module__.startswith("httpx"):
                raise
            raise _Passing(f"the connection failed ({type(error).__name__})") from None
        try:
            reply = read_completion(content.decode("utf-8", "replace"))
        except (ValueError, RecursionError) as error:
            raise _Passing(f"the endpoint sent what is no chat completion ({self._cleaned(str(error))})") from None
        id_, text, reason = map(self._cleaned, (reply.id, reply.text, reply.finish_reason))
        return replace(reply, id=id_, text=text, finish_reason=reason)

    def _judged(self, error: Any) -> Exception:
        """An HTTP status of 400 or above as what it means for this request, and for the run."""
        status = error.status_code
        said = self._quoted(error.response.text)
        problem = f"the endpoint says {status}: {said}"
        if status in _PASSING or status >= 500:
            return _Passing(problem, retry_after_seconds(error.response.headers, datetime.now(UTC)))
        if status in _REFUSALS:
            self._num_refused += 1
            if self._num_refused >= PATIENCE and not self.has_answered:
                return EndpointError(f"the first {PATIENCE} calls were refused; the last: {problem}")
            return CallRefused(problem)
        return EndpointError(f"{problem} (endpoint {self._settings.endpoint}, model {self._settings.model})")

    def _cleaned(self, text: str) -> str:
        """Without the key, as it is and as JSON may write it: replies are JSON, within JSON."""
        if self._key:
            for spelling in (self._key, self._key.replace("/", "\\/")):
                text = text.replace(spelling, "[key]")
        return text

    def _quoted(self, text: str) -> str:
        """What the endpoint said, on one line, short."""
        line = " ".join(self._cleaned(text).split())
        return line if len(line) <= _MAX_QUOTED else line[:_MAX_QUOTED] + "..."


class _Passing(Exception):
    """A try that failed in a way that the next may not."""

    def __init__(self, problem: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.retry_after_seconds = retry_after_seconds


def read_key(variable: str | None) -> str | None:
    """The key of the endpoint, None where it asks for none. Raises UsageError naming the variable, never its value."""
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UsageError(
            f"environment variable {variable} holds no key; set it, or api_key_env=null if the endpoint wants none"
        )
    return key


def wait_seconds(attempt: int, asked_seconds: float | None, longest_seconds: float, chance: random.Random) -> float:
    """Before another try: doubling from a second, spread by half to either side so that calls that failed together do
    not come back together; at least what the endpoint asked for."""
    backed_off = _FIRST_WAIT_SECONDS * 2**attempt * chance.uniform(0.5, 1.5)
    return max(min(backed_off, longest_seconds), asked_seconds or 0.0)


def retry_after_seconds(headers: Any, now: datetime) -> float | None:
    """The Retry-After of an answer, a number of seconds or a date; None where there is none that can be read."""
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
    """A chat completion's JSON. Raises ValueError with one sentence for anything else."""
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

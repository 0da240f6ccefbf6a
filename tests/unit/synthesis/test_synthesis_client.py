"""The client against a server that injects faults: retries, rejections, repairs, the cache and the key."""

from __future__ import annotations

import asyncio
import json
import random
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from support.openai_server import Fault, FaultScript, ScriptedServer, serving

from videoseek.config import UsageError
from videoseek.endpoint import (
    FIRST_WAIT_SECONDS,
    MAX_FAILURES_IN_A_ROW,
    CacheError,
    CallFailed,
    Client,
    EndpointError,
    retry_after_seconds,
    wait_seconds,
)
from videoseek.synthesis.client import ItemRejected, StageClient
from videoseek.synthesis.settings import SynthesisSettings

KEY = "sk-never-to-be-seen-1234567890"
VERDICT = json.dumps({"think": "I see it.", "answer": "A", "certain": True})


def make_settings(server: ScriptedServer | None, folder: Path, **changes: Any) -> SynthesisSettings:
    defaults = SynthesisSettings(
        out=str(folder), model="m", api_key_env=None, attempts=3, max_wait_seconds=0.05, deadline_seconds=5.0
    )
    return replace(defaults, endpoint=server.url if server else "http://127.0.0.1:9/v1", **changes)


def ask_each(settings: SynthesisSettings, *texts: str, concurrently: bool = False) -> list[Any]:
    """Returns the verdict or the exception of one request per text, sent one after the other or concurrently."""

    async def run() -> list[Any]:
        async with Client(settings, settings.cache_folder) as client:
            calls = [StageClient(client).ask("verify", [text], lambda reply: None) for text in texts]
            if concurrently:
                return await asyncio.gather(*calls, return_exceptions=True)
            return [(await asyncio.gather(call, return_exceptions=True))[0] for call in calls]

    return asyncio.run(run())


def fail_first(fault: Fault) -> FaultScript:
    """Returns a script that injects the fault into the first call of each request and answers the later calls."""
    return lambda body, digest, repeat: fault if repeat == 0 else None


@pytest.mark.parametrize(
    "fault",
    [
        Fault("status", 429, "0.05"),
        Fault("status", 500),
        Fault("status", 503),
        Fault("status", 408),
        Fault("cut"),
        Fault("cut_error", 500),
        Fault("garbage"),
        Fault("hang"),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.status}",
)
def test_transient_failures_are_retried(fault: Fault, tmp_path: Path) -> None:
    with serving(lambda body: VERDICT, fail_first(fault)) as server:
        deadline = 0.5 if fault.kind == "hang" else 5.0
        (reply,) = ask_each(make_settings(server, tmp_path, deadline_seconds=deadline), "x")
        assert reply["answer"] == "A"
        assert (len(server.calls), len(server.answered)) == (2, 1)


def test_retry_after_is_respected_unless_it_exceeds_the_maximum_wait(tmp_path: Path) -> None:
    with serving(lambda body: VERDICT, fail_first(Fault("status", 429, "0.6"))) as server:
        started = time.monotonic()
        (reply,) = ask_each(make_settings(server, tmp_path / "a", max_wait_seconds=1.0), "x")
        assert reply["answer"] == "A" and time.monotonic() - started >= 0.6
    with serving(lambda body: VERDICT, fail_first(Fault("status", 429, "3600"))) as server:
        (failure,) = ask_each(make_settings(server, tmp_path / "b"), "x")
        assert isinstance(failure, CallFailed) and "3600 s of quiet" in str(failure)
        assert len(server.calls) == 1


def test_an_unanswered_request_does_not_affect_other_requests(tmp_path: Path) -> None:
    def fault_script(body: dict[str, Any], digest: str, repeat: int) -> Fault | None:
        return Fault("status", 500) if "bad" in body["messages"][1]["content"][0]["text"] else None

    with serving(lambda body: VERDICT, fault_script) as server:
        failure, reply = ask_each(make_settings(server, tmp_path), "bad", "good")
        assert isinstance(failure, CallFailed) and "after 3 tries" in str(failure)
        assert reply["answer"] == "A"


def test_a_refused_request_rejects_its_own_item_only(tmp_path: Path) -> None:
    def fault_script(body: dict[str, Any], digest: str, repeat: int) -> Fault | None:
        return Fault("status", 400) if "long" in body["messages"][1]["content"][0]["text"] else None

    with serving(lambda body: VERDICT, fault_script) as server:
        rejection, reply = ask_each(make_settings(server, tmp_path), "too long", "good")
        assert isinstance(rejection, ItemRejected) and rejection.code == "request_refused"
        assert reply["answer"] == "A" and len(server.calls) == 2


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_rejected_key_or_an_unknown_model_ends_the_run_at_once(status: int, tmp_path: Path) -> None:
    with serving(lambda body: VERDICT, lambda body, digest, repeat: Fault("status", status)) as server:
        (failure,) = ask_each(make_settings(server, tmp_path), "x")
        assert isinstance(failure, EndpointError) and str(status) in str(failure)
        assert len(server.calls) == 1


@pytest.mark.parametrize("status", [400, 500])
def test_failures_in_a_row_end_the_run(status: int, tmp_path: Path) -> None:
    with serving(lambda body: VERDICT, lambda body, digest, repeat: Fault("status", status)) as server:
        texts = [str(i) for i in range(MAX_FAILURES_IN_A_ROW)]
        outcomes = ask_each(make_settings(server, tmp_path, attempts=1), *texts)
        expected = ItemRejected if status == 400 else CallFailed
        assert [type(outcome) for outcome in outcomes[:-1]] == [expected] * (MAX_FAILURES_IN_A_ROW - 1)
        assert isinstance(outcomes[-1], EndpointError) and f"{MAX_FAILURES_IN_A_ROW} calls " in str(outcomes[-1])


def test_refusals_after_an_answer_do_not_end_the_run(tmp_path: Path) -> None:
    """Otherwise a run whose other replies are all in the cache could never finish."""

    def fault_script(body: dict[str, Any], digest: str, repeat: int) -> Fault | None:
        return None if body["messages"][1]["content"][0]["text"] == "good" else Fault("status", 400)

    with serving(lambda body: VERDICT, fault_script) as server:
        texts = ["good", *(str(i) for i in range(MAX_FAILURES_IN_A_ROW + 1))]
        for _ in range(2):  # in the second run, the good reply comes from the cache
            outcomes = ask_each(make_settings(server, tmp_path), *texts)
            assert {type(outcome) for outcome in outcomes[1:]} == {ItemRejected}


def test_a_refused_connection_fails_the_call(tmp_path: Path) -> None:
    (failure,) = ask_each(make_settings(None, tmp_path), "x")
    assert isinstance(failure, CallFailed) and "connection failed" in str(failure)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault("text", text="I think it is A."), "not one JSON object"),
        (Fault("text", text=VERDICT.replace("certain", "sure")), "has not the shape asked for"),
        (Fault("text", text=VERDICT.replace("true", '"yes"')), "['certain']"),
        (Fault("text", text="[" * 100_000), "not one JSON object"),
        (Fault("length"), "too long"),
    ],
    ids=["prose", "field", "type", "nesting", "length"],
)
def test_a_faulty_reply_is_sent_back_once_with_its_fault(fault: Fault, words: str, tmp_path: Path) -> None:
    bodies = []

    def fault_script(body: dict[str, Any], digest: str, repeat: int) -> Fault | None:
        bodies.append(body)
        return fault if len(body["messages"]) == 2 else None

    with serving(lambda body: VERDICT, fault_script) as server:
        assert ask_each(make_settings(server, tmp_path), "x")[0]["answer"] == "A"
        assert [len(body["messages"]) for body in bodies] == [2, 4]
        assert words in bodies[1]["messages"][3]["content"]
        assert bodies[1]["messages"][2] == {"role": "assistant", "content": fault.text or VERDICT[: len(VERDICT) // 2]}

    def always(body: dict[str, Any], digest: str, repeat: int) -> Fault:
        return fault

    with serving(lambda body: VERDICT, always) as server:
        for _ in range(2):  # the second run reads the cache
            (rejection,) = ask_each(make_settings(server, tmp_path / "again"), "x")
            assert (
                isinstance(rejection, ItemRejected) and rejection.code == "invalid_reply" and words in rejection.reason
            )
        assert len(server.calls) == 2


def test_markdown_fences_around_json_are_removed(tmp_path: Path) -> None:
    with serving(lambda body: f"```json\n{VERDICT}\n```\n") as server:
        run_settings = make_settings(server, tmp_path, response_format="none")
        assert ask_each(run_settings, "x")[0]["answer"] == "A"
        assert len(server.calls) == 1


def test_a_reply_withheld_by_the_content_filter_rejects_the_item(tmp_path: Path) -> None:
    with serving(lambda body: VERDICT, lambda body, digest, repeat: Fault("filter")) as server:
        (rejection,) = ask_each(make_settings(server, tmp_path), "x")
        assert isinstance(rejection, ItemRejected) and rejection.code == "content_filter"


@pytest.mark.parametrize("response_format", ["json_schema", "json_object", "none"])
def test_the_response_format_is_sent(response_format: str, tmp_path: Path) -> None:
    bodies: list[dict[str, Any]] = []
    script: Callable[[dict[str, Any]], str] = lambda body: bodies.append(body) or VERDICT  # noqa: E731
    with serving(script) as server:
        ask_each(make_settings(server, tmp_path, response_format=response_format, temperature=None), "x")
    (body,) = bodies
    assert body.get("response_format", {"type": "none"})["type"] == response_format
    assert "temperature" not in body


def test_equal_requests_are_sent_once(tmp_path: Path) -> None:
    with serving(lambda body: VERDICT, delay_seconds=0.05) as server:
        run_settings = make_settings(server, tmp_path)
        assert len(ask_each(run_settings, "x", "x", "y", "x", concurrently=True)) == 4
        assert len(server.calls) == 2
        ask_each(run_settings, "x", "y", "x")
        assert len(server.calls) == 2
        ask_each(replace(run_settings, temperature=0.5), "x")
        ask_each(replace(run_settings, model="other"), "x")
        assert len(server.calls) == 4


def test_a_foreign_file_in_the_cache_is_named(tmp_path: Path) -> None:
    with serving(lambda body: VERDICT) as server:
        run_settings = make_settings(server, tmp_path)
        ask_each(run_settings, "x")
        (path,) = run_settings.cache_folder.rglob("*.json")
        path.write_text("{}")
        (failure,) = ask_each(run_settings, "x")
        assert isinstance(failure, CacheError) and str(path) in str(failure)


@pytest.mark.parametrize("limit", [1, 3])
def test_concurrency_is_limited(limit: int, tmp_path: Path) -> None:
    with serving(lambda body: VERDICT, delay_seconds=0.03) as server:
        ask_each(make_settings(server, tmp_path, concurrency=limit), *(str(i) for i in range(12)), concurrently=True)
        assert server.max_open == limit


def test_the_key_is_sent_but_never_stored_or_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    quoting = json.dumps({"think": f"your key is {KEY}", "answer": "A", "certain": True})
    for status in (400, 401, 500):
        with serving(lambda body: VERDICT, lambda body, digest, repeat: Fault("status", status)) as server:  # noqa: B023
            (failure,) = ask_each(make_settings(server, tmp_path, api_key_env="MY_KEY"), "x")
            assert server.calls[0].authorization == f"Bearer {KEY}"
            message = failure.reason if isinstance(failure, ItemRejected) else str(failure)
            assert "[key]" in message and KEY not in message
            assert KEY not in "".join(traceback.format_exception(failure))
    with serving(lambda body: quoting) as server:
        (reply,) = ask_each(make_settings(server, tmp_path, api_key_env="MY_KEY"), "x")
        assert reply["think"] == "your key is [key]"
    slashed = "sk-never/to/be/seen"
    monkeypatch.setenv("MY_KEY", slashed)
    escaped = quoting.replace(KEY, slashed).replace("/", "\\/")  # some servers escape a slash
    with serving(lambda body: escaped) as server:
        (reply,) = ask_each(make_settings(server, tmp_path, api_key_env="MY_KEY"), "y")
        assert reply["think"] == "your key is [key]"
    stored = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(b"never/to" in path.read_bytes() or b"never\\" in path.read_bytes() for path in stored)
    assert stored and not any(KEY.encode() in path.read_bytes() for path in stored)


def test_a_missing_key_is_reported_before_any_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(UsageError, match="MY_KEY holds no key"):
        Client(make_settings(None, tmp_path, api_key_env="MY_KEY"), tmp_path)


def test_waits_double_with_jitter_up_to_the_maximum_and_respect_retry_after() -> None:
    rng = random.Random(0)
    for attempt in range(8):
        waits = [wait_seconds(attempt, None, 60.0, rng) for _ in range(200)]
        middle = FIRST_WAIT_SECONDS * 2**attempt
        assert min(0.5 * middle, 60) <= min(waits) and max(waits) <= min(1.5 * middle, 60)
        assert middle > 60 or max(waits) > 1.2 * min(waits)
    assert wait_seconds(0, 30.0, 60.0, rng) == 30.0


def test_retry_after_is_read_as_seconds_or_as_a_date() -> None:
    now = datetime(2030, 1, 1, 12, 0, 0, tzinfo=UTC)
    for value, expected in (
        ("1.5", 1.5),
        ("-3", 0.0),
        ("Tue, 01 Jan 2030 12:00:20 GMT", 20.0),
        ("Tue, 01 Jan 2030 11:00:00 GMT", 0.0),
        ("soon", None),
    ):
        assert retry_after_seconds({"retry-after": value}, now) == expected
    assert retry_after_seconds({}, now) is None

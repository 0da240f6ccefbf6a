"""The client against a real server that misbehaves: what is tried again, kept, refused, and what never leaks."""

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
from openai_server import Faults, Misbehaviour, ScriptedServer, serving

from videoseek.config import UsageError
from videoseek.samples.schema import DataError
from videoseek.synthesis import endpoint as endpoint_module
from videoseek.synthesis.endpoint import (
    PATIENCE,
    CallFailed,
    Endpoint,
    EndpointError,
    retry_after_seconds,
    wait_seconds,
)
from videoseek.synthesis.settings import SynthesisSettings
from videoseek.synthesis.stage_client import Asker, Rejected, Shared

KEY = "sk-never-to-be-seen-1234567890"
VERDICT = json.dumps({"think": "I see it.", "answer": "A", "certain": True})


def settings(server: ScriptedServer | None, folder: Path, **changes: Any) -> SynthesisSettings:
    quick = SynthesisSettings(
        out=str(folder), model="m", api_key_env=None, attempts=3, max_wait_seconds=0.05, deadline_seconds=5.0
    )
    return replace(quick, endpoint=server.url if server else "http://127.0.0.1:9/v1", **changes)


def ask_each(made: SynthesisSettings, *texts: str, together: bool = False) -> list[Any]:
    """The verdict, or the exception, for each text; one after the other or all at once."""

    async def run() -> list[Any]:
        async with Endpoint(made) as endpoint:
            shared = Shared(made, endpoint)
            calls = [Asker(shared).ask("verify", [text], lambda reply: None) for text in texts]
            if together:
                return await asyncio.gather(*calls, return_exceptions=True)
            return [(await asyncio.gather(call, return_exceptions=True))[0] for call in calls]

    return asyncio.run(run())


def only_first(*kinds: Misbehaviour) -> Faults:
    """The n-th time that a request comes, the n-th thing goes wrong; then it is answered."""
    return lambda body, digest, nth: kinds[nth] if nth < len(kinds) else None


@pytest.mark.parametrize(
    "fault",
    [
        Misbehaviour("status", 429, "0.05"),
        Misbehaviour("status", 500),
        Misbehaviour("status", 503),
        Misbehaviour("status", 408),
        Misbehaviour("cut"),
        Misbehaviour("cut_error", 500),
        Misbehaviour("garbage"),
        Misbehaviour("hang"),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.status}",
)
def test_what_may_pass_is_tried_again(fault: Misbehaviour, tmp_path: Path) -> None:
    with serving(lambda body: VERDICT, only_first(fault)) as server:
        deadline = 0.5 if fault.kind == "hang" else 5.0
        (reply,) = ask_each(settings(server, tmp_path, deadline_seconds=deadline), "x")
        assert reply["answer"] == "A"
        assert (len(server.calls), len(server.paid)) == (2, 1)


def test_retry_after_is_waited_for_and_one_too_long_is_not(tmp_path: Path) -> None:
    with serving(lambda body: VERDICT, only_first(Misbehaviour("status", 429, "0.6"))) as server:
        started = time.monotonic()
        (reply,) = ask_each(settings(server, tmp_path / "a", max_wait_seconds=1.0), "x")
        assert reply["answer"] == "A" and time.monotonic() - started >= 0.6
    with serving(lambda body: VERDICT, only_first(Misbehaviour("status", 429, "3600"))) as server:
        (failure,) = ask_each(settings(server, tmp_path / "b"), "x")
        assert isinstance(failure, CallFailed) and "3600 s of quiet" in str(failure)
        assert len(server.calls) == 1


def test_a_request_without_an_answer_fails_alone(tmp_path: Path) -> None:
    def faults(body: dict[str, Any], digest: str, nth: int) -> Misbehaviour | None:
        return Misbehaviour("status", 500) if "bad" in body["messages"][1]["content"][0]["text"] else None

    with serving(lambda body: VERDICT, faults) as server:
        failure, reply = ask_each(settings(server, tmp_path), "bad", "good")
        assert isinstance(failure, CallFailed) and "after 3 tries" in str(failure)
        assert reply["answer"] == "A"


def test_a_refused_request_rejects_its_item_alone(tmp_path: Path) -> None:
    def faults(body: dict[str, Any], digest: str, nth: int) -> Misbehaviour | None:
        return Misbehaviour("status", 400) if "long" in body["messages"][1]["content"][0]["text"] else None

    with serving(lambda body: VERDICT, faults) as server:
        refusal, reply = ask_each(settings(server, tmp_path), "too long", "good")
        assert isinstance(refusal, Rejected) and refusal.code == "request_refused"
        assert reply["answer"] == "A" and len(server.calls) == 2


@pytest.mark.parametrize("status", [401, 403, 404])
def test_an_endpoint_that_refuses_all_ends_the_run_at_once(status: int, tmp_path: Path) -> None:
    with serving(lambda body: VERDICT, lambda body, digest, nth: Misbehaviour("status", status)) as server:
        (failure,) = ask_each(settings(server, tmp_path), "x")
        assert isinstance(failure, EndpointError) and str(status) in str(failure)
        assert len(server.calls) == 1


@pytest.mark.parametrize("status", [400, 500])
def test_failures_in_a_row_end_the_run(status: int, tmp_path: Path) -> None:
    with serving(lambda body: VERDICT, lambda body, digest, nth: Misbehaviour("status", status)) as server:
        outcomes = ask_each(settings(server, tmp_path, attempts=1), *(str(i) for i in range(PATIENCE)))
        assert [type(outcome) for outcome in outcomes[:-1]] == [Rejected if status == 400 else CallFailed] * (
            PATIENCE - 1
        )
        assert isinstance(outcomes[-1], EndpointError) and f"{PATIENCE} calls " in str(outcomes[-1])


def test_refusals_after_an_answer_are_their_own_fault(tmp_path: Path) -> None:
    """Else a run whose other calls are all in the cache could never come to its end."""

    def faults(body: dict[str, Any], digest: str, nth: int) -> Misbehaviour | None:
        return None if body["messages"][1]["content"][0]["text"] == "good" else Misbehaviour("status", 400)

    with serving(lambda body: VERDICT, faults) as server:
        for _ in range(2):  # the second time, the good one is in the cache
            outcomes = ask_each(settings(server, tmp_path), "good", *(str(i) for i in range(PATIENCE + 1)))
            assert {type(outcome) for outcome in outcomes[1:]} == {Rejected}


def test_nobody_at_the_address(tmp_path: Path) -> None:
    (failure,) = ask_each(settings(None, tmp_path), "x")
    assert isinstance(failure, CallFailed) and "connection failed" in str(failure)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Misbehaviour("text", text="I think it is A."), "not one JSON object"),
        (Misbehaviour("text", text=VERDICT.replace("certain", "sure")), "has not the shape asked for"),
        (Misbehaviour("text", text=VERDICT.replace("true", '"yes"')), "['certain']"),
        (Misbehaviour("text", text="[" * 100_000), "not one JSON object"),
        (Misbehaviour("length"), "too long"),
    ],
    ids=["prose", "field", "type", "nesting", "length"],
)
def test_a_bad_reply_is_repaired_once_with_its_error_shown(fault: Misbehaviour, words: str, tmp_path: Path) -> None:
    bodies = []

    def faults(body: dict[str, Any], digest: str, nth: int) -> Misbehaviour | None:
        bodies.append(body)
        return fault if len(body["messages"]) == 2 else None

    with serving(lambda body: VERDICT, faults) as server:
        assert ask_each(settings(server, tmp_path), "x")[0]["answer"] == "A"
        assert [len(body["messages"]) for body in bodies] == [2, 4]
        assert words in bodies[1]["messages"][3]["content"]
        assert bodies[1]["messages"][2] == {"role": "assistant", "content": fault.text or VERDICT[: len(VERDICT) // 2]}

    def always(body: dict[str, Any], digest: str, nth: int) -> Misbehaviour:
        return fault

    with serving(lambda body: VERDICT, always) as server:
        for _ in range(2):  # the second time from the cache
            (refusal,) = ask_each(settings(server, tmp_path / "again"), "x")
            assert isinstance(refusal, Rejected) and refusal.code == "invalid_reply" and words in refusal.reason
        assert len(server.calls) == 2


def test_fences_around_json_are_taken_off(tmp_path: Path) -> None:
    with serving(lambda body: f"```json\n{VERDICT}\n```\n") as server:
        made = settings(server, tmp_path, response_format="none")
        assert ask_each(made, "x")[0]["answer"] == "A"
        assert len(server.calls) == 1


def test_a_withheld_reply_rejects(tmp_path: Path) -> None:
    with serving(lambda body: VERDICT, lambda body, digest, nth: Misbehaviour("filter")) as server:
        (refusal,) = ask_each(settings(server, tmp_path), "x")
        assert isinstance(refusal, Rejected) and refusal.code == "content_filter"


@pytest.mark.parametrize("chosen", ["json_schema", "json_object", "none"])
def test_the_response_format_is_the_one_chosen(chosen: str, tmp_path: Path) -> None:
    bodies: list[dict[str, Any]] = []
    script: Callable[[dict[str, Any]], str] = lambda body: bodies.append(body) or VERDICT  # noqa: E731
    with serving(script) as server:
        ask_each(settings(server, tmp_path, response_format=chosen, temperature=None), "x")
    (body,) = bodies
    assert body.get("response_format", {"type": "none"})["type"] == chosen
    assert "temperature" not in body


def test_equal_requests_are_paid_for_once(tmp_path: Path) -> None:
    with serving(lambda body: VERDICT, delay_seconds=0.05) as server:
        made = settings(server, tmp_path)
        assert len(ask_each(made, "x", "x", "y", "x", together=True)) == 4
        assert len(server.calls) == 2
        ask_each(made, "x", "y", "x")
        assert len(server.calls) == 2
        ask_each(replace(made, temperature=0.5), "x")
        ask_each(replace(made, model="other"), "x")
        assert len(server.calls) == 4


def test_a_cache_file_of_another_program_is_named(tmp_path: Path) -> None:
    with serving(lambda body: VERDICT) as server:
        made = settings(server, tmp_path)
        ask_each(made, "x")
        (path,) = made.cache_folder.rglob("*.json")
        path.write_text("{}")
        (failure,) = ask_each(made, "x")
        assert isinstance(failure, DataError) and str(path) in str(failure)


@pytest.mark.parametrize("limit", [1, 3])
def test_no_more_requests_at_once_than_allowed(limit: int, tmp_path: Path) -> None:
    with serving(lambda body: VERDICT, delay_seconds=0.03) as server:
        ask_each(settings(server, tmp_path, concurrency=limit), *(str(i) for i in range(12)), together=True)
        assert server.most_busy == limit


def test_the_key_is_sent_and_never_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    quoting = json.dumps({"think": f"your key is {KEY}", "answer": "A", "certain": True})
    for status in (400, 401, 500):
        with serving(lambda body: VERDICT, lambda body, digest, nth: Misbehaviour("status", status)) as server:  # noqa: B023
            (failure,) = ask_each(settings(server, tmp_path, api_key_env="MY_KEY"), "x")
            assert server.calls[0].authorization == f"Bearer {KEY}"
            told = failure.reason if isinstance(failure, Rejected) else str(failure)
            assert "[key]" in told and KEY not in told
            assert KEY not in "".join(traceback.format_exception(failure))
    with serving(lambda body: quoting) as server:
        (reply,) = ask_each(settings(server, tmp_path, api_key_env="MY_KEY"), "x")
        assert reply["think"] == "your key is [key]"
    slashed = "sk-never/to/be/seen"
    monkeypatch.setenv("MY_KEY", slashed)
    escaped = quoting.replace(KEY, slashed).replace("/", "\\/")  # as some servers write a slash
    with serving(lambda body: escaped) as server:
        (reply,) = ask_each(settings(server, tmp_path, api_key_env="MY_KEY"), "y")
        assert reply["think"] == "your key is [key]"
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(b"never/to" in path.read_bytes() or b"never\\" in path.read_bytes() for path in kept)
    assert kept and not any(KEY.encode() in path.read_bytes() for path in kept)


def test_a_missing_key_is_said_before_anything_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(UsageError, match="MY_KEY holds no key"):
        Endpoint(settings(None, tmp_path, api_key_env="MY_KEY"))


def test_waits_double_with_jitter_up_to_the_limit_and_no_less_than_asked() -> None:
    chance = random.Random(0)
    for attempt in range(8):
        waits = [wait_seconds(attempt, None, 60.0, chance) for _ in range(200)]
        middle = endpoint_module._FIRST_WAIT_SECONDS * 2**attempt
        assert min(0.5 * middle, 60) <= min(waits) and max(waits) <= min(1.5 * middle, 60)
        assert middle > 60 or max(waits) > 1.2 * min(waits)
    assert wait_seconds(0, 30.0, 60.0, chance) == 30.0


def test_retry_after_as_seconds_and_as_a_date() -> None:
    now = datetime(2030, 1, 1, 12, 0, 0, tzinfo=UTC)
    for value, wanted in (
        ("1.5", 1.5),
        ("-3", 0.0),
        ("Tue, 01 Jan 2030 12:00:20 GMT", 20.0),
        ("Tue, 01 Jan 2030 11:00:00 GMT", 0.0),
        ("soon", None),
    ):
        assert retry_after_seconds({"retry-after": value}, now) == wanted
    assert retry_after_seconds({}, now) is None

"""The judge of open answers against a real HTTP server that injects faults."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.openai_server import Fault, ScriptedServer, serving

from videoseek.config import UsageError
from videoseek.endpoint import EndpointError
from videoseek.evaluation.judge import RUBRICS, JudgeSettings, OpenAnswer, judge_answers, prompt_hash
from videoseek.evaluation.metrics import Outcome, accuracy

KEY = "sk-never-to-be-seen-1234567890"
RIGHT = OpenAnswer("What falls?", "a red cup", "<think>cup</think><answer>A cup, red.</answer>")
WRONG = OpenAnswer("What falls?", "a red cup", "a plate")
EMPTY = OpenAnswer("What falls?", "a red cup", "<answer> </answer>")


def settings(server: ScriptedServer | None, folder: Path, **changes: Any) -> JudgeSettings:
    given = {"model": "m", "api_key_env": None, "attempts": 2, "max_wait_seconds": 0.05, "deadline_seconds": 5.0}
    url = server.url if server else "http://127.0.0.1:9/v1"
    return JudgeSettings(**(given | {"cache_dir": str(folder), "endpoint": url} | changes))


def graded(body: dict[str, Any]) -> dict[str, str]:
    return dict(json.loads(body["messages"][1]["content"]))


def grade(body: dict[str, Any]) -> str:
    """Judges by the words of the answer, with prose around the JSON as real judges write it."""
    return f'Let me see. ```json\n{{"reason": "words", "score": {int("red" in graded(body)["answer"])}}}\n```'


def test_answers_are_judged_once_and_an_empty_reply_never(tmp_path: Path) -> None:
    with serving(grade) as server:
        judged = judge_answers([RIGHT, WRONG, EMPTY], settings(server, tmp_path))
        assert [(item.score, item.status) for item in judged] == [(1, "answered"), (0, "answered"), (0, "unanswered")]
        assert judged[0].reason == "words" and len(server.calls) == 2
        assert judge_answers([WRONG, RIGHT], settings(server, tmp_path)) == [judged[1], judged[0]]
        assert len(server.calls) == 2
        judge_answers([RIGHT], settings(server, tmp_path, rubric="graded"))
        judge_answers([RIGHT], settings(server, tmp_path, model="other"))
        assert len(server.calls) == 4 and prompt_hash("graded") != prompt_hash("binary")


def test_the_judge_sees_the_answer_as_data_without_the_thinking(tmp_path: Path) -> None:
    bodies: list[dict[str, Any]] = []
    with serving(lambda body: bodies.append(body) or grade(body)) as server:  # type: ignore[func-returns-value]
        judge_answers([RIGHT], settings(server, tmp_path))
    assert graded(bodies[0]) == {"question": "What falls?", "reference": "a red cup", "answer": "A cup, red."}


@pytest.mark.parametrize(
    ("text", "rubric", "score"),
    [
        ('{"score": 1, "reason": "x"}', "binary", 1),
        ('{"reason": "first", "score": 0} no: {"reason": "x", "score": 0.5}', "graded", 0.5),
        ('{"reason": "the answer says {\\"score\\": 1} {x}", "score": 0}', "binary", 0),
        ('{"score": 0.5}', "binary", None),
        ('{"score": [1]}', "binary", None),
        ('{"a":' * 5000, "binary", None),
        ('{"score": 2}', "graded", None),
        ('{"score": true}', "binary", None),
        ('{"score": "1"}', "binary", None),
        ('{"score": NaN}', "binary", None),
        ("1", "binary", None),
        ("The answer is right.", "binary", None),
        ('{"score": 1', "binary", None),
        ("", "binary", None),
    ],
)
def test_a_judgement_is_read_or_counted_as_an_error(
    text: str, rubric: str, score: float | None, tmp_path: Path
) -> None:
    with serving(lambda body: text) as server:
        (judged,) = judge_answers([RIGHT], settings(server, tmp_path, rubric=rubric))
    assert judged.score == score and judged.error == (None if score is not None else "unreadable")
    assert judged.status == ("answered" if score is not None else "judge_error")
    assert score is None or score in RUBRICS[rubric][0]


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault("status", 400), "refused"),
        (Fault("status", 500), "no_answer"),
        (Fault("hang"), "no_answer"),
        (Fault("garbage"), "no_answer"),
        (Fault("filter"), "unreadable"),
        (Fault("length"), "unreadable"),
    ],
)
def test_a_failed_call_is_a_judge_error_of_its_own_question(fault: Fault, error: str, tmp_path: Path) -> None:
    bad = OpenAnswer("Bad?", "yes", "red")
    script = lambda body, digest, repeat: fault if graded(body)["question"] == "Bad?" else None  # noqa: E731
    with serving(grade, script) as server:
        deadline = 0.5 if fault.kind == "hang" else 5.0
        judged = judge_answers([RIGHT, bad], settings(server, tmp_path, deadline_seconds=deadline))
    assert (judged[0].score, judged[1].score, judged[1].error) == (1, None, error)
    outcomes = [Outcome(str(i), "film", item.score or 0.0, item.status) for i, item in enumerate(judged)]
    assert (accuracy(outcomes).of_all, accuracy(outcomes).of_answered) == (0.5, 1.0)
    assert accuracy(outcomes).counts["judge_error"] == 1


def test_a_first_failure_is_tried_again(tmp_path: Path) -> None:
    with serving(grade, lambda body, digest, repeat: Fault("status", 503) if repeat == 0 else None) as server:
        assert judge_answers([RIGHT], settings(server, tmp_path))[0].score == 1
        assert len(server.calls) == 2


def test_the_key_is_sent_but_never_stored_or_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    quoting = json.dumps({"reason": f"your key is {KEY}", "score": 1})
    with serving(lambda body: quoting) as server:
        (judged,) = judge_answers([RIGHT], settings(server, tmp_path, api_key_env="JUDGE_KEY"))
        assert server.calls[0].authorization == f"Bearer {KEY}"
    assert judged.reason == "your key is [key]"
    assert all(KEY not in path.read_text() for path in tmp_path.rglob("*.json"))
    with serving(grade, lambda body, digest, repeat: Fault("status", 401)) as server:
        with pytest.raises(EndpointError) as failure:
            judge_answers([WRONG], settings(server, tmp_path, api_key_env="JUDGE_KEY"))
        assert KEY not in str(failure.value) and "401" in str(failure.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": None}, "model is missing"),
        ({"endpoint": "judge"}, "endpoint must be a URL"),
        ({"api_key_env": "NO_SUCH_VARIABLE"}, "NO_SUCH_VARIABLE holds no key"),
    ],
)
def test_wrong_settings_are_refused_before_a_call(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words):
        judge_answers([RIGHT], settings(None, tmp_path, **changes))

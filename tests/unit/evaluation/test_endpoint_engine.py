"""Baselines behind a real HTTP server: the protocol of local models, numbers by hand, and nothing paid twice."""

from __future__ import annotations

import base64
import io
import json
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.benchmarks import Films, videomme
from support.openai_server import Fault, FaultScript, ScriptedServer, serving

from videoseek import endpoint
from videoseek.command import run_command
from videoseek.config_merge import load_config
from videoseek.endpoint import EndpointError, ReplyCache
from videoseek.evaluate import main
from videoseek.evaluation.benchmarks import evaluate_tasks, run_folder
from videoseek.evaluation.endpoint_engine import endpoint_settings
from videoseek.evaluation.prompts import SYSTEM
from videoseek.evaluation.runner import endpoint_model
from videoseek.trajectory.formats import FORMATS
from videoseek.types import Call

KEY = "sk-never-to-be-seen-1234567890"
FORMAT = FORMATS["grounding"]("brief")
LOOK = FORMAT.render_turn("look", Call(4, 8, "medium"), None)
ANSWER = FORMAT.render_turn("so", None, "B")
WORDS = "This video is uniformly sampled at 1.00 fps, contains 12 frames from 0.0 seconds to 12.0 seconds.\n"
WORDS += "Question: Which colour is card 1?\nOptions: A. red B. green C. blue D. black"
KEYS = ["recipe=sft_rl", "stages=[sft]", "model=openai:gpt-x", "evaluate.tasks=[videomme]", "video.overview_fps=1"]
KEYS += ["video.crop_fps=1", "video.max_tokens_per_grid=2", "evaluate.api_key_env=TEST_KEY"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six questions: short 2, medium 2, long 2; the key is B, of the last question E."""
    folder = tmp_path_factory.mktemp("root")
    videomme(folder, Films(folder))
    return folder


@pytest.fixture(autouse=True)
def _quick_retries_and_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "FIRST_WAIT_SECONDS", 0.01)
    monkeypatch.setenv("TEST_KEY", KEY)


def run(server: ScriptedServer, root: Path, out: Path, *keys: str) -> dict[str, Any]:
    given = [*KEYS, f"evaluate.data_root={root}", f"evaluate.endpoint={server.url}", *keys]
    config = load_config(given)
    settings = endpoint_settings(config)
    assert settings is not None
    load = partial(endpoint_model, config, settings, run_folder(config, None, out).parent / "replies")
    (result,) = evaluate_tasks(config, None, load, out)
    return result


def lines(out: Path) -> dict[str, dict[str, Any]]:
    (file,) = out.glob("*/*/videomme/answers.jsonl")
    return {line["id"]: line for line in map(json.loads, file.read_text().splitlines())}


def texts(message: dict[str, Any]) -> str:
    content = message["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "[frame]") for part in content)


def script(body: dict[str, Any]) -> str:
    """Answers B, with the tool after one look: right for all questions but the one with five options."""
    if texts(body["messages"][0]) != FORMAT.system_prompt():
        return "B"
    return ANSWER if len(body["messages"]) > 2 else LOOK


def of_five(body: dict[str, Any]) -> bool:
    """Returns whether a request is about the only question with five options, 003-2."""
    return "white" in texts(body["messages"][1])


def forget_answers(folder: Path) -> None:
    """Removes the answers, as a user does who scores the cached replies again."""
    for name in ("answers.jsonl", "results.json"):
        (folder / name).unlink()


@pytest.mark.parametrize(
    ("mode", "prompt_tokens", "reply_tokens", "turns"),
    [
        # 100 for a prompt, a quarter of the characters of system and assistant turns, quotes included
        ("tool", 206 + (26 + len(json.dumps(LOOK))) // 4, len(LOOK) // 4 + len(ANSWER) // 4, 2),
        ("direct", 100 + len(json.dumps(SYSTEM["direct"])) // 4, 0, 1),
    ],
)
def test_numbers_by_hand_and_a_second_run_pays_nothing(
    mode: str, prompt_tokens: int, reply_tokens: int, turns: int, root: Path, tmp_path: Path
) -> None:
    """5 of 6 right. The films are equal, and so are four of the questions: three questions are paid."""
    keys = ["evaluate.prompt_price=2", "evaluate.completion_price=10", f"evaluate.mode={mode}"]
    with serving(script) as server:
        result = run(server, root, tmp_path, *keys)
        assert len(server.calls) == 3 * turns
        (folder,) = tmp_path.glob("openai:gpt-x/*/videomme")
        forget_answers(folder)
        again = run(server, root, tmp_path, *keys)
        assert run(server, root, tmp_path, *keys, "evaluate.limit=3")["values"]["num_questions"] <= 3
        assert len(server.calls) == 3 * turns, "the replies are of the model and serve all its runs"
        assert {call.authorization for call in server.calls} == {f"Bearer {KEY}"}
    assert result["values"]["accuracy"] == pytest.approx(5 / 6) == again["values"]["accuracy"]
    assert result["values"]["mean/turns"] == turns and result["values"]["mean/calls"] == turns - 1
    last = prompt_tokens if turns == 1 else prompt_tokens - 106 + len(ANSWER) // 4
    assert result["values"]["mean/tokens"] == last and result["values"]["mean/new_tokens"] == reply_tokens
    cost = 6 * (2 * prompt_tokens + 10 * reply_tokens) / 1e6
    assert (
        result["usage"]
        == again["usage"]
        == {
            "requests": 6 * turns,
            "prompt_tokens": 6 * prompt_tokens,
            "completion_tokens": 6 * reply_tokens,
            "cost": pytest.approx(cost),
        }
    )
    assert result["values"].get("mean/right_parity") is None
    assert "frames as pictures of detail auto" in result["protocol"]
    stored = [path.read_text() for path in tmp_path.rglob("*.json*") if path.is_file()]
    assert len(stored) > 5 and not any(KEY in text for text in stored)


def test_messages_are_those_of_a_local_episode(root: Path, tmp_path: Path) -> None:
    """The system turn, the words and the frames of overview and crop, with their times, at the size of our quotas."""
    bodies: list[dict[str, Any]] = []
    with serving(lambda body: bodies.append(body) or script(body)) as server:  # type: ignore[func-returns-value]
        keys = ["evaluate.image_detail=low", "evaluate.final_answer=true", "rollout.max_turns=1"]
        run(server, root, tmp_path, *keys, "evaluate.questions_per_batch=1")
    system, user, call, observation = bodies[1]["messages"]
    assert bodies[0]["messages"] == [system, user] and call == {"role": "assistant", "content": LOOK}
    assert (bodies[0]["model"], bodies[0]["temperature"], bodies[0]["top_p"]) == ("gpt-x", 0.0, 1.0)
    assert texts(user).endswith("11.0 s:[frame]" + WORDS)
    assert texts(observation).startswith("Observation 1: 4.0 s:[frame]5.0 s:[frame]")
    assert texts(observation).endswith("Answer now, with the evidence that you have.")
    pictures = [part["image_url"] for part in user["content"] if "image_url" in part]
    assert len(pictures) == texts(user).count("[frame]") == 12
    assert {picture["detail"] for picture in pictures} == {"low"}
    with Image.open(io.BytesIO(base64.b64decode(pictures[0]["url"].partition(",")[2]))) as image:
        assert (image.format, image.size) == ("JPEG", (28, 28))


class Killed(BaseException):
    """Ends a run like a signal."""


def test_a_killed_run_pays_nothing_twice(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill after each number of paid replies: the first run's answers, and one request for each in all."""
    keep = ReplyCache.put
    with serving(script) as server:
        run(server, root, tmp_path / "whole")
        expected = {name: line["text"] for name, line in lines(tmp_path / "whole").items()}
        for limit in range(1, 6):
            out, before, kept = tmp_path / str(limit), len(server.calls), []

            def put(cache: ReplyCache, digest: str, reply: Any, limit: int = limit, kept: list[str] = kept) -> None:
                keep(cache, digest, reply)
                kept.append(digest)
                if len(kept) == limit:
                    raise Killed

            monkeypatch.setattr(ReplyCache, "put", put)
            with pytest.raises(Killed):
                run(server, root, out, "evaluate.questions_per_batch=1")
            monkeypatch.setattr(ReplyCache, "put", keep)
            run(server, root, out, "evaluate.questions_per_batch=1")
            assert len(server.calls) - before == 6
            assert {name: line["text"] for name, line in lines(out).items()} == expected


def test_votes_are_different_draws(root: Path, tmp_path: Path) -> None:
    """Three replies a question at the temperature of the run; the majority answers, and all three are on the bill."""
    replies = {"4": ["A", "B", "B"], "5": ["E", "C", "D"]}
    seen: Counter[str] = Counter()
    sent: list[tuple[float, float]] = []

    def vote(body: dict[str, Any]) -> str:
        sent.append((body["temperature"], body["top_p"]))
        key = "5" if of_five(body) else "4"
        seen[key] += 1
        return replies[key][(seen[key] - 1) % 3]

    keys = ["evaluate.votes=3", "evaluate.mode=direct", "rollout.temperature=0.7", "rollout.top_p=0.9"]
    with serving(vote) as server:
        result = run(server, root, tmp_path, *keys, "evaluate.questions_per_batch=1")
        assert len(server.calls) == 3 * 3 and set(sent) == {(0.7, 0.9)}
    assert result["usage"]["requests"] == 18 and result["usage"]["cost"] is None
    assert sorted(lines(tmp_path)["003-2"]["votes"]) == ["C", "D", "E"]
    assert [sorted(lines(tmp_path)[name]["votes"]) for name in ("001-1", "002-2")] == [["A", "B", "B"]] * 2
    assert result["values"]["accuracy"] >= 5 / 6


def test_the_endpoints_own_sampling(root: Path, tmp_path: Path) -> None:
    bodies: list[dict[str, Any]] = []
    with serving(lambda body: bodies.append(body) or "B") as server:  # type: ignore[func-returns-value]
        result = run(server, root, tmp_path, "evaluate.send_sampling=false", "evaluate.mode=direct")
    assert not {"temperature", "top_p"} & set(bodies[0])
    assert "1 turn, the endpoint's own sampling, frames" in result["protocol"]


@pytest.mark.parametrize(
    ("fault", "reason", "status", "asked_again"),
    [
        (Fault("status", 400), "refused", "engine_error", 0),
        (Fault("status", 500), "no_reply", "engine_error", 2),
        (Fault("filter"), "empty", "unanswered", 0),
        (Fault("text", text="I cannot say."), "no_answer", "unanswered", 0),
    ],
)
def test_engine_errors_are_counted_apart_from_unanswered(
    fault: Fault, reason: str, status: str, asked_again: int, root: Path, tmp_path: Path
) -> None:
    """One of six questions fails. A later run asks again what got no reply, and nothing else."""
    faulty: FaultScript = lambda body, digest, repeat: fault if of_five(body) else None  # noqa: E731
    with serving(script, faulty) as server:
        result = run(server, root, tmp_path, "evaluate.mode=direct")
        before = len(server.calls)
        server.fault_script = lambda body, digest, repeat: None
        again = run(server, root, tmp_path, "evaluate.mode=direct")
        assert len(server.calls) - before == (1 if asked_again else 0)
    values = result["values"]
    counts = {name: values[f"num_{name}"] for name in ("engine_error", "unanswered", "answered")}
    assert counts == {"engine_error": 0, "unanswered": 0, "answered": 5} | {status: 1}
    assert result["reasons"] == {"letter": 5, reason: 1}
    assert (values["accuracy"], values["accuracy_of_answered"]) == (pytest.approx(5 / 6), 1.0)
    assert again["values"]["num_answered"] == (6 if asked_again else 5)


def test_a_failed_later_turn_keeps_its_bill_and_its_reason(root: Path, tmp_path: Path) -> None:
    refuse = Fault("status", 422)
    faulty: FaultScript = lambda body, digest, repeat: refuse if len(body["messages"]) > 2 else None  # noqa: E731
    with serving(script, faulty) as server:
        result = run(server, root, tmp_path)
    assert result["values"]["num_engine_error"] == 6 and result["usage"]["requests"] == 6
    line = lines(tmp_path)["001-1"]
    assert line["reason"] == "refused" and "the endpoint says 422: " in line["error"] and "[key]" in line["error"]
    assert (line["requests"], line["prompt_tokens"], line["extracted"]) == (1, 106, None)


def test_a_busy_server_is_waited_for(root: Path, tmp_path: Path) -> None:
    """429 with Retry-After: the next try comes no earlier."""
    times: dict[str, list[float]] = {}

    def busy(body: dict[str, Any], digest: str, repeat: int) -> Fault | None:
        times.setdefault(digest, []).append(time.monotonic())
        return Fault("status", 429, retry_after="0.3") if repeat == 0 else None

    with serving(script, busy) as server:
        result = run(server, root, tmp_path, "evaluate.mode=direct")
    assert result["values"]["accuracy"] == pytest.approx(5 / 6)
    assert [len(tries) for tries in times.values()] == [2] * 3
    assert all(later - first >= 0.3 for first, later in times.values())


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str], code: int) -> str:
    """Returns the last line that the command says."""
    assert run_command(main, arguments) == code
    return capsys.readouterr().err.splitlines()[-1]


def test_a_wrong_model_ends_the_command_with_one_sentence(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*KEYS, f"data_root={root}", "device=cpu", f"output_dir={tmp_path}"]
    with serving(script, lambda body, digest, repeat: Fault("status", 404)) as server:
        said = refusal([*arguments, f"endpoint={server.url}"], capsys, 1)
        assert said.startswith("videoseek: the endpoint says 404: ") and KEY not in said
        assert said.endswith(f"(endpoint {server.url}, model gpt-x)")
        assert list(tmp_path.rglob("answers.jsonl")) == []
        server.fault_script = None
        assert run_command(main, [*arguments, f"endpoint={server.url}"]) == 0
    assert "12 replies" in capsys.readouterr().out and len(lines(tmp_path)) == 6
    assert len(list(tmp_path.glob("openai:gpt-x/replies/*/*.json"))) == 6


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        (["evaluate.tasks=[]"], "model=openai:gpt-x: give model=openai:NAME with tasks=[NAME, ...]"),
        (["model=openai:"], "model=openai:: give model=openai:NAME"),
        (["endpoint=gpt"], "endpoint must be a URL"),
        (["api_key_env=NO_SUCH_KEY"], "environment variable NO_SUCH_KEY holds no key"),
        (["image_detail=huge"], "evaluate.image_detail must be one of auto, low, high, got 'huge'"),
    ],
)
def test_wrong_settings(
    keys: list[str], sentence: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*KEYS, f"data_root={root}", "device=cpu", f"output_dir={tmp_path}", *keys]
    assert sentence in refusal(arguments, capsys, 2)


def test_a_server_that_refuses_all_ends_the_run(root: Path, tmp_path: Path) -> None:
    """Eight votes are refused before any answer: no results, and one sentence."""
    keys = ["evaluate.votes=8", "evaluate.mode=direct"]
    with (
        serving(script, lambda body, digest, repeat: Fault("status", 400)) as server,
        pytest.raises(EndpointError, match="the first 8 calls were refused; the last: the endpoint says 400"),
    ):
        run(server, root, tmp_path, *keys)
    assert list(tmp_path.rglob("results.json")) == []

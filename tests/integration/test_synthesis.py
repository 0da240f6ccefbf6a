"""`python -m videoseek.data synthesize` against a local server: yield, rejections, kills, shards, training.

The server's model (`clue_model`) reads the received pictures, so the tests cover frames, times and sizes.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import clue_model
from support.commands import environment, forked, summary
from support.openai_server import Fault, ScriptedServer, schema_name, serving

from videoseek.command import run_command
from videoseek.data import main
from videoseek.samples import clueworld
from videoseek.samples.rules import find_bad
from videoseek.samples.schema import read_samples
from videoseek.synthesis.items import STAGES
from videoseek.synthesis.settings import QUADRANTS
from videoseek.trajectory.formats import FORMATS

PRELOADED = [
    *("videoseek.synthesis.command", "videoseek.synthesis.executor", "videoseek.synthesis.review"),
    *("videoseek.stages.pipeline", "openai", "jsonschema"),
]
FULL = os.environ.get("VIDEOSEEK_FULL") == "1"
KEY = "sk-never-to-be-seen-1234567890"
VIDEOS, QUESTIONS = 2, 4
ITEMS = VIDEOS * QUESTIONS

#: Sized for the clue world: the overview is 28 px wide and shows colours, a crop of 140 px also shows patterns.
SMALL = [
    *("model=clue", "api_key_env=null", "attempts=4", "max_wait_seconds=0.02", "deadline_seconds=20", "concurrency=4"),
    *(
        "video.stall_seconds=null",
        "questions_per_video=4",
        "caption_seconds=16",
        "prompt_price=2",
        "completion_price=8",
    ),
    *("video.overview_fps=0.5", "video.overview_tokens=8", "video.crop_fps=1", "video.max_tokens_per_grid=25"),
    *("video.coarse_tokens=200", "video.medium_tokens=400", "video.fine_tokens=600", "video.min_frames=2"),
    *("video.frame_policy=uniform", "review=4"),
]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder of clue world videos. The generator's samples lie beside the folder."""
    folder = tmp_path_factory.mktemp("world")
    return clueworld.prepare(folder, "train", 6 * VIDEOS, seed=3).parent / "videos"


def synthesize(source: Path, out: Path, server: ScriptedServer, *keys: str, code: int = 0) -> dict[str, Any]:
    """Runs the command in this process, expects the exit code `code` and returns the summary."""
    arguments = ["synthesize", str(source), f"out={out}", f"endpoint={server.url}", *SMALL, *keys]
    assert run_command(main, arguments) == code
    path = out / "summary.json"
    return json.loads(path.read_text()) if path.exists() else {}


def outputs(out: Path) -> dict[str, bytes]:
    """Returns the output files of a run, without the cache and the shards."""
    return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if path.is_file()}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def changed(change: Callable[[str, dict[str, Any], dict[str, Any]], None]) -> Callable[[dict[str, Any]], str]:
    """Returns the clue model with `change(schema, task_input, reply)` applied to each reply in place."""

    def script(body: dict[str, Any]) -> str:
        reply = json.loads(clue_model.reply(body))
        task_input = json.loads(body["messages"][1]["content"][-1]["text"].rpartition("INPUT\n")[2])
        change(schema_name(body), task_input, reply)
        return json.dumps(reply)

    return script


def test_good_questions_of_all_quadrants_are_accepted(videos: Path, tmp_path: Path) -> None:
    with serving(clue_model.reply) as server:
        report = synthesize(videos, tmp_path, server, "video.stall_seconds=60")
    assert (report["sources"], report["items"], report["samples"]) == (VIDEOS, ITEMS, ITEMS)
    assert {kind: count["samples"] for kind, count in report["kinds"].items()} == dict.fromkeys(QUADRANTS, VIDEOS)
    samples = read_samples(tmp_path / "samples.jsonl", videos)
    assert find_bad(samples, range(len(samples)), need_turns=True) == []
    fmt = FORMATS["grounding"]()
    for sample in samples:
        parsed = [fmt.parse(turn) for turn in sample.turns]
        assert not any(turn.faults for turn in parsed)
        windows = [(call.start_seconds, call.end_seconds) for turn in parsed for call in turn.calls]
        assert windows == (list(sample.clues) if sample.kind.endswith("_w_tool") else [])
        assert parsed[-1].answer == sample.answer
    for name, stage in report["stages"].items():
        assert stage["yield"] == 1.0 and stage["repairs"] == 0
        assert stage["calls"] == {"caption": 2 * VIDEOS, "question": VIDEOS}.get(name, ITEMS)
        priced = stage["prompt_tokens"] * 2 + stage["completion_tokens"] * 8
        assert stage["cost"] == pytest.approx(priced / 1e6, abs=1e-6) and priced > 0
    assert len(server.calls) == 3 * VIDEOS + 5 * ITEMS


def test_mp4_clips_lead_to_the_same_windows_as_pictures(videos: Path, tmp_path: Path) -> None:
    """An MP4 halves the colour resolution, so the model may confuse colours but must find the same times."""
    with serving(clue_model.reply) as server:
        for media in ("frames", "video"):
            synthesize(videos, tmp_path / media, server, f"media={media}", "limit=1")
    from_pictures, from_mp4 = (lines(tmp_path / media / "samples.jsonl") for media in ("frames", "video"))
    assert len(from_mp4) == QUESTIONS
    assert [sample["clues"] for sample in from_mp4] == [sample["clues"] for sample in from_pictures]


def test_faulty_items_are_rejected_with_stage_code_and_reason(videos: Path, tmp_path: Path) -> None:
    """The questions of each quadrant fail in another way."""

    def change(schema: str, task_input: dict[str, Any], reply: dict[str, Any]) -> None:
        question = str(task_input.get("question"))
        if schema == "verify" and question.startswith("What is on"):
            reply["answer"] = "ABCD"[("ABCD".index(reply["answer"]) + 1) % 4]
        if schema == "verify" and question.startswith("Are the"):
            reply["certain"] = False
        if schema == "judge" and question.startswith("Which of"):
            reply.update(faults=["hallucinated"], is_valid=False, analysis="There is no such card.")
        if schema == "judge" and question.startswith("Which card"):
            reply.update(faults=["guess"], is_valid=True)

    with serving(changed(change)) as server:
        report = synthesize(videos, tmp_path, server, code=1)
    assert report["samples"] == 0
    assert report["rejections"] == {
        "judge/hallucinated": VIDEOS,
        "judge/invalid_reply": VIDEOS,
        "verify/uncertain": VIDEOS,
        "verify/wrong_answer": VIDEOS,
    }
    assert report["stages"]["verify"]["yield"] == 0.5 and report["stages"]["judge"]["repairs"] == VIDEOS
    rows = lines(tmp_path / "rejected.jsonl")
    assert len(rows) == ITEMS
    assert set(rows[0]) == {"id", "source", "video", "question", "stage", "code", "reason"}
    assert "There is no such card." in next(row["reason"] for row in rows if row["code"] == "hallucinated")


def test_clues_must_overlap_the_evidence_of_the_question(videos: Path, tmp_path: Path) -> None:
    def change(schema: str, task_input: dict[str, Any], reply: dict[str, Any]) -> None:
        for clue in reply.get("clues", []):
            clue.update(start=clue["start"] + 8 if clue["start"] < 16 else 0, end=clue["start"] + 10)

    with serving(changed(change)) as server:
        report = synthesize(videos, tmp_path, server, "limit=1", code=1)
    assert set(report["rejections"]) <= {
        "localise/clue_elsewhere",
        "verify/wrong_answer",
        "verify/uncertain",
        "localise/invalid_reply",
    }
    assert report["rejections"]["localise/clue_elsewhere"] >= 1


def half_faulty(body: dict[str, Any], digest: str, repeat: int) -> Fault | None:
    """Injects a fault into half of the requests, selected by their digest.

    A fault in transport hits the first call only. A fault in the reply's text hits every call except repairs.
    """
    if len(body["messages"]) == 2:
        faults = [
            Fault("status", 500),
            Fault("status", 429, "0.02"),
            Fault("cut"),
            Fault("garbage"),
            Fault("text", text='{"think": "half a re'),
            Fault("text", text='{"reply": []}'),
        ]
        number = int(digest[:4], 16) % (2 * len(faults))
        fault = faults[number] if number < len(faults) else None
        return fault if fault is None or fault.kind == "text" or repeat == 0 else None
    return None


def test_endpoint_faults_change_the_cost_only(videos: Path, tmp_path: Path) -> None:
    with serving(clue_model.reply) as server:
        faultless = synthesize(videos, tmp_path / "faultless", server)
    with serving(clue_model.reply, half_faulty) as server:
        faulty = synthesize(videos, tmp_path / "faulty", server)
        assert len(server.calls) > len(server.answered) > faultless["items"]
    repairs = sum(stage["repairs"] for stage in faulty["stages"].values())
    assert faulty["samples"] == faultless["samples"] and repairs > 0
    for name in ("samples.jsonl", "rejected.jsonl"):
        assert (tmp_path / "faultless" / name).read_bytes() == (tmp_path / "faulty" / name).read_bytes()


def test_concurrency_is_limited_and_does_not_change_the_output(videos: Path, tmp_path: Path) -> None:
    for concurrency in (1, 7):
        with serving(clue_model.reply, half_faulty, delay_seconds=0.01) as server:
            synthesize(videos, tmp_path / str(concurrency), server, f"concurrency={concurrency}")
            assert server.max_open <= concurrency
            assert concurrency == 1 or server.max_open > 2
    assert outputs(tmp_path / "1") == outputs(tmp_path / "7")


def _run_forked(arguments: list[str], log_path: str, variables: dict[str, str]) -> None:
    os.environ.update(variables)
    log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    raise SystemExit(run_command(main, arguments))


def start_command(arguments: list[str], log_path: Path, **variables: str) -> Any:
    """Starts the command in a process with finished imports and with `variables` in the environment."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=_run_forked, args=(arguments, str(log_path), variables))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment().items():
            patch.setenv(name, value)
        process.start()
    return process


def finished_replies(out: Path) -> set[str]:
    """Returns the ids of the completions in the cache. Each file is complete, because writes are atomic."""
    return {json.loads(path.read_text())["id"] for path in (out / "cache").rglob("[!.]*.json")}


def test_a_run_killed_at_random_points_resumes_with_equal_bytes(videos: Path, tmp_path: Path) -> None:
    """The output equals the output of an uninterrupted run, and no request asks for a cached reply again."""
    num_kills = 40 if FULL else 4
    rng = random.Random(11)
    with serving(clue_model.reply, half_faulty) as server:
        synthesize(videos, tmp_path / "uninterrupted", server)
        total = len(server.calls)
    with serving(clue_model.reply, half_faulty, delay_seconds=0.005) as server:
        out = tmp_path / "killed"
        arguments = ["synthesize", str(videos), f"out={out}", f"endpoint={server.url}", *SMALL]
        cached_before: dict[int, set[str]] = {}
        kills = 0
        while True:
            process = start_command(arguments, tmp_path / "log.txt")
            kill_at = len(server.calls) + rng.randint(1, max(total // num_kills, 2))
            pause = rng.random() * 0.05
            while process.is_alive() and (len(server.calls) < kill_at or kills >= num_kills):
                time.sleep(0.001)
            time.sleep(pause)
            process.kill()
            process.join()
            if process.exitcode == 0:
                break
            assert process.exitcode == -9, (tmp_path / "log.txt").read_text()
            kills += 1
            time.sleep(0.05)  # lets the server finish its open calls
            cached_before[len(server.calls)] = finished_replies(out)
        digest_of = {call.id: call.digest for call in server.answered}
        for number, cached in cached_before.items():
            again = {call.digest for call in server.calls[number:]}
            assert not {digest_of[id_] for id_ in cached} & again
        num_answers = Counter(call.digest for call in server.answered)
        repeated = sum(count - 1 for count in num_answers.values())
    print(f"{kills} kills, {len(num_answers)} answered requests, {repeated} of them twice (open at a kill)")
    assert kills >= min(num_kills, 3)
    assert repeated <= 4 * kills
    assert outputs(tmp_path / "killed") == outputs(tmp_path / "uninterrupted")


def test_merged_shards_equal_one_run(videos: Path, tmp_path: Path) -> None:
    def change(schema: str, task_input: dict[str, Any], reply: dict[str, Any]) -> None:
        if schema == "localise" and task_input["question"].startswith("What is on"):
            reply["clues"] = []

    whole, sharded = tmp_path / "whole", tmp_path / "sharded"
    with serving(changed(change)) as server:
        shares = "shares=[0,1,1,0]"
        synthesize(videos, whole, server, shares)
        num_calls = len(server.calls)
        for index in (1, 2):
            arguments = ["synthesize", str(videos), f"out={sharded}", f"endpoint={server.url}", *SMALL, shares]
            assert run_command(main, [*arguments, f"shard={index}/2"]) == 0
        assert len(server.calls) == 2 * num_calls
    sizes = [len(lines(sharded / f"shard-{index}-of-2" / "items.jsonl")) for index in (1, 2)]
    assert sum(sizes) == ITEMS
    assert run_command(main, ["synthesize", f"out={sharded}", "merge=true", "review=4"]) == 0
    assert outputs(sharded) == outputs(whole)
    assert len(lines(whole / "surplus.jsonl")) == VIDEOS


def test_missing_or_differing_shards_are_refused(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refusal(code: int, *keys: str) -> str:
        assert run_command(main, ["synthesize", f"out={tmp_path}", "merge=true", *keys]) == code
        return capsys.readouterr().err.splitlines()[-1]

    assert "found none" in refusal(2)
    with serving(clue_model.reply) as server:
        base = ["synthesize", str(videos), f"out={tmp_path}", f"endpoint={server.url}", *SMALL]
        assert run_command(main, [*base, "shard=1/2"]) == 0
        assert "run shard=2/2 first" in refusal(2)
        assert run_command(main, [*base, "shard=2/2", "seed=1"]) == 0
    assert "seed 1 instead of 0" in refusal(2)
    assert "give it out and review alone" in refusal(2, "seed=1")


def test_unanswered_items_are_unfinished_and_resume(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The endpoint fails for the judge. The next run sends the judge's requests only."""

    def down(body: dict[str, Any], digest: str, repeat: int) -> Fault | None:
        return Fault("status", 503) if schema_name(body) == "judge" else None

    with serving(clue_model.reply, down) as server:
        report = synthesize(videos, tmp_path, server, "limit=1", "attempts=2", code=1)
        assert report["unfinished"] == QUESTIONS and report["rejections"] == {"judge/unfinished": QUESTIONS}
    message = capsys.readouterr().err
    assert "went unanswered; the same command goes on" in message
    assert "the first: no answer after 2 tries: the endpoint says 503" in message
    with serving(clue_model.reply) as server:
        report = synthesize(videos, tmp_path, server, "limit=1", "attempts=2")
        assert [call.schema for call in server.calls] == ["judge"] * QUESTIONS
        assert report["samples"] == QUESTIONS and report["unfinished"] == 0


def test_given_questions_and_captions_are_kept(videos: Path, tmp_path: Path) -> None:
    """The input has the generator's questions, among them a wrong answer, and a video with a caption.

    The clues must equal the generator's clues, although command and server see only the questions.
    """
    originals = [s for s in read_samples(videos.parent / "samples.jsonl") if s.kind.endswith("_w_tool")]
    records = [
        {"id": sample.id, "video": Path(sample.video).name, "question": sample.question}
        | {"options": list(sample.options), "answer": sample.answer}
        for sample in originals
    ]
    single = next(s for s in originals if s.kind == "clue_single_w_tool")
    wrong = next(letter for letter in "ABCD" if letter != single.answer)
    records += [next(r for r in records if r["id"] == single.id) | {"id": "wrong", "answer": wrong}]
    card = single.question.split()[4]
    caption = {"start": single.clues[0][0], "end": single.clues[0][1], "text": f"a {card} card with rows"}
    records += [{"id": "captioned", "video": Path(single.video).name, "captions": [caption]}]
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    with serving(clue_model.reply) as server:
        report = synthesize(path, tmp_path / "out", server, f"video_root={videos}")
        assert Counter(call.schema for call in server.calls)["caption"] == 0
        assert Counter(call.schema for call in server.calls)["question"] == 1
    assert report["rejections"]["verify/wrong_answer"] >= 1
    samples = {sample.id: sample for sample in read_samples(tmp_path / "out/samples.jsonl", videos)}
    assert "wrong" not in samples and "captioned-q03" in samples
    for sample in originals:
        assert samples[sample.id].options == sample.options and samples[sample.id].answer == sample.answer
        merged = len(sample.clues) == 2 and sample.clues[0][1] == sample.clues[1][0]
        assert merged or samples[sample.id].clues == sample.clues


def test_a_broken_video_is_rejected_and_the_others_continue(videos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    shutil.copy(videos / "train-00000.mp4", folder)
    (folder / "broken.mp4").write_bytes(b"not a video")
    with serving(clue_model.reply) as server:
        report = synthesize(folder, tmp_path / "out", server)
    assert report["samples"] == QUESTIONS and report["rejections"] == {"caption/not_video": 1}


def test_the_key_is_in_no_file_and_no_log(videos: Path, tmp_path: Path) -> None:
    """The server quotes the key in every error, and the second run fails with a traceback."""
    secret = {"SYNTHESIS_KEY": KEY, "VIDEOSEEK_TRACEBACK": "1"}

    def fault_script(body: dict[str, Any], digest: str, repeat: int) -> Fault | None:
        if schema_name(body) == "judge":
            return Fault("status", 400)
        return Fault("status", 500) if repeat == 0 else None

    keys = ["api_key_env=SYNTHESIS_KEY", "limit=1"]
    with serving(clue_model.reply, fault_script) as server:
        arguments = ["synthesize", str(videos), f"out={tmp_path / 'a'}", f"endpoint={server.url}", *SMALL, *keys]
        process = start_command(arguments, tmp_path / "log-1.txt", **secret)
        process.join()
        assert {call.authorization for call in server.calls} == {f"Bearer {KEY}"}
    with serving(clue_model.reply, lambda body, digest, repeat: Fault("status", 401)) as server:
        arguments = ["synthesize", str(videos), f"out={tmp_path / 'b'}", f"endpoint={server.url}", *SMALL, *keys]
        process = start_command(arguments, tmp_path / "log-2.txt", **secret)
        process.join()
    assert "Traceback" in (tmp_path / "log-2.txt").read_text() and "401" in (tmp_path / "log-2.txt").read_text()
    rejected = lines(tmp_path / "a/rejected.jsonl")
    assert {row["code"] for row in rejected} == {"request_refused"} and "[key]" in rejected[0]["reason"]
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 20 and not [path for path in written if KEY.encode() in path.read_bytes()]


def test_dry_run_estimates_the_calls_without_sending_any(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(clue_model.reply) as server:
        synthesize(videos, tmp_path / "out", server, "dry_run=true")
        text = capsys.readouterr().out
        assert not server.calls and not (tmp_path / "out").exists()
        synthesize(videos, tmp_path / "out", server)
        num_calls = len(server.calls)
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line[:1].isalpha()}
    assert int(rows["all"][0]) == num_calls == sum(int(rows[name][0]) for name in STAGES)
    assert float(rows["all"][3]) > 0
    assert f"{VIDEOS} videos or lines, {ITEMS} questions" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["model=m"], "name one folder of videos or one JSONL file"),
        (["gone", "model=m", "api_key_env=null"], "neither a folder"),
        (["{videos}"], "model is missing"),
        (["{videos}", "model=m", "api_key_env=NO_SUCH_KEY"], "NO_SUCH_KEY holds no key"),
        (["{videos}", "model=m", "medium=frames"], "unknown key 'medium'"),
    ],
)
def test_wrong_usage_gives_one_sentence(
    arguments: list[str], words: str, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filled = [argument.replace("{videos}", str(videos)) for argument in arguments]
    assert run_command(main, ["synthesize", *filled, f"out={tmp_path}"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and words in errors[0]


def test_help_names_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_command(main, ["synthesize", "--help"])
    text = capsys.readouterr().out
    assert all(f"  {key} " in text for key in ("endpoint", "api_key_env", "shares", "video.overview_tokens"))


def test_the_samples_train(videos: Path, tmp_path: Path, tiny: list[str]) -> None:
    with serving(clue_model.reply) as server:
        synthesize(videos, tmp_path / "synthesis", server)
    run = tmp_path / "run"
    train = [f"data.sft=[{tmp_path / 'synthesis/samples.jsonl'}]", f"data.video_root={videos}", f"output_dir={run}"]
    train += ["data.eval=[clueworld:4]", "stages=[sft]", "recipe=sft", "sft.steps=4"]
    log = forked([*(key for key in tiny if not key.startswith("recipe=")), *train], tmp_path)
    losses = [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 4 and losses[-1] < losses[0], log
    assert summary(run)


@pytest.fixture
def hostile(tmp_path: Path) -> Iterator[Path]:
    """Yields the output of a run with a model that writes HTML into text fields."""
    bad = "<script>document.title='broken'</script><img src=x onerror=alert(1)>"

    def change(schema: str, task_input: dict[str, Any], reply: dict[str, Any]) -> None:
        if schema == "verify":
            reply["think"] = bad
        if schema == "judge":
            reply["analysis"] = bad
        if schema == "trajectory":
            reply["final"]["think"] = "I see it."
            for step in reply["steps"]:
                step["think"] = "I look."
        for clue in reply.get("clues", []):
            clue.update(cue=bad, finding=bad)

    folder = clueworld.prepare(tmp_path / "world", "train", 6, seed=5).parent / "videos"
    with serving(changed(change)) as server:
        synthesize(folder, tmp_path / "out", server)
    yield tmp_path / "out"


def test_the_review_page_shows_samples_and_escapes_html(hostile: Path) -> None:
    page = (hostile / "review.html").read_text()
    assert page.count("<article") == 4 and page.count("data:image/jpeg") > 40
    assert "<script" not in page and "onerror=alert(1)&gt;" in page and "src=x" not in page.replace("&lt;img src=x", "")


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium to show the page")
def test_a_browser_renders_the_review_page(hostile: Path, tmp_path: Path) -> None:
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", f"file://{hostile}/review.html"]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    assert "<title>videoseek: synthesised samples for review</title>" in dom


@pytest.mark.skipif(not FULL, reason="Ray takes half a minute to start; runs with VIDEOSEEK_FULL=1")
def test_ray_gives_the_same_bytes_as_the_local_driver(videos: Path, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, logging_level="error", runtime_env={"env_vars": environment()})
    try:
        with serving(clue_model.reply, half_faulty) as server:
            synthesize(videos, tmp_path / "local", server)
        with serving(clue_model.reply, half_faulty) as server:
            synthesize(videos, tmp_path / "ray", server, "driver=ray", "concurrency=3")
            assert server.max_open <= 2 * 3 * 2
        assert outputs(tmp_path / "ray") == outputs(tmp_path / "local")
        with serving(clue_model.reply, lambda body, digest, repeat: Fault("status", 401)) as server:
            synthesize(videos, tmp_path / "refused", server, "driver=ray", code=1)
    finally:
        ray.shutdown()

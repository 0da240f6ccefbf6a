"""`python -m videoseek.data synthesize` against a local server: yield, gates, kills, shards, training on it.

The server's model reads the pictures that it is sent (`clue_model`), so frames, times and sizes are tested with it.
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

import clue_model
import pytest
from commands import environment, forked, summary
from openai_server import Misbehaviour, ScriptedServer, serving, shape_of

from videoseek.command import run_command
from videoseek.data import main
from videoseek.samples import clueworld
from videoseek.samples.check import check_samples
from videoseek.samples.schema import read_samples
from videoseek.synthesis.settings import QUADRANTS
from videoseek.synthesis.stages import STAGES
from videoseek.trajectory.grammar import FORMATS

FULL = os.environ.get("VIDEOSEEK_FULL") == "1"
KEY = "sk-never-to-be-seen-1234567890"
VIDEOS, QUESTIONS = 2, 4
ITEMS = VIDEOS * QUESTIONS

#: The clue world's scale: the overview is 28 px wide and shows colours, a crop of 140 px shows patterns.
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
    """Of the clue world; its own questions about them lie beside the folder."""
    folder = tmp_path_factory.mktemp("world")
    return clueworld.prepare(folder, "train", 6 * VIDEOS, seed=3).parent / "videos"


def synthesize(source: Path, out: Path, server: ScriptedServer, *keys: str, code: int = 0) -> dict[str, Any]:
    """The summary of a run in this process that ends with `code`."""
    arguments = ["synthesize", str(source), f"out={out}", f"endpoint={server.url}", *SMALL, *keys]
    assert run_command(main, arguments) == code
    path = out / "summary.json"
    return json.loads(path.read_text()) if path.exists() else {}


def outputs(out: Path) -> dict[str, bytes]:
    """Whatever a run writes beside its cache and its shards."""
    return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if path.is_file()}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def changed(change: Callable[[str, dict[str, Any], dict[str, Any]], None]) -> Callable[[dict[str, Any]], str]:
    """The clue model with its replies changed in place, by shape and by what was asked."""

    def script(body: dict[str, Any]) -> str:
        reply = json.loads(clue_model.reply(body))
        given = json.loads(body["messages"][1]["content"][-1]["text"].rpartition("INPUT\n")[2])
        change(shape_of(body), given, reply)
        return json.dumps(reply)

    return script


def test_every_question_of_every_quadrant_comes_through(videos: Path, tmp_path: Path) -> None:
    with serving(clue_model.reply) as server:
        found = synthesize(videos, tmp_path, server, "video.stall_seconds=60")
    assert (found["sources"], found["items"], found["samples"]) == (VIDEOS, ITEMS, ITEMS)
    assert {kind: count["samples"] for kind, count in found["kinds"].items()} == dict.fromkeys(QUADRANTS, VIDEOS)
    samples = read_samples(tmp_path / "samples.jsonl", videos)
    check_samples(samples, need_turns=True)
    fmt = FORMATS["grounding"]()
    for sample in samples:
        parsed = [fmt.parse(turn) for turn in sample.turns]
        assert not any(turn.faults for turn in parsed)
        windows = [(call.start_seconds, call.end_seconds) for turn in parsed for call in turn.calls]
        assert windows == (list(sample.clues) if sample.kind.endswith("_w_tool") else [])
        assert parsed[-1].answer == sample.answer
    for name, stage in found["stages"].items():
        assert stage["yield"] == 1.0 and stage["repairs"] == 0
        assert stage["calls"] == {"caption": 2 * VIDEOS, "question": VIDEOS}.get(name, ITEMS)
        priced = stage["prompt_tokens"] * 2 + stage["completion_tokens"] * 8
        assert stage["cost"] == pytest.approx(priced / 1e6, abs=1e-6) and priced > 0
    assert len(server.calls) == 3 * VIDEOS + 5 * ITEMS


def test_clips_as_films_lead_to_the_same_windows(videos: Path, tmp_path: Path) -> None:
    """A film has half the resolution in colour, so hues may be taken for others; times stay."""
    with serving(clue_model.reply) as server:
        for media in ("frames", "video"):
            synthesize(videos, tmp_path / media, server, f"media={media}", "limit=1")
    pictures, films = (lines(tmp_path / media / "samples.jsonl") for media in ("frames", "video"))
    assert len(films) == QUESTIONS
    assert [sample["clues"] for sample in films] == [sample["clues"] for sample in pictures]


def test_what_does_not_hold_is_rejected_with_its_reason(videos: Path, tmp_path: Path) -> None:
    """Each quadrant's question fails at another stage."""

    def change(shape: str, given: dict[str, Any], reply: dict[str, Any]) -> None:
        question = str(given.get("question"))
        if shape == "verify" and question.startswith("What is on"):
            reply["answer"] = "ABCD"[("ABCD".index(reply["answer"]) + 1) % 4]
        if shape == "verify" and question.startswith("Are the"):
            reply["certain"] = False
        if shape == "judge" and question.startswith("Which of"):
            reply.update(faults=["hallucinated"], is_valid=False, analysis="There is no such card.")
        if shape == "judge" and question.startswith("Which card"):
            reply.update(faults=["guess"], is_valid=True)

    with serving(changed(change)) as server:
        found = synthesize(videos, tmp_path, server, code=1)
    assert found["samples"] == 0
    assert found["rejections"] == {
        "judge/hallucinated": VIDEOS,
        "judge/invalid_reply": VIDEOS,
        "verify/uncertain": VIDEOS,
        "verify/wrong_answer": VIDEOS,
    }
    assert found["stages"]["verify"]["yield"] == 0.5 and found["stages"]["judge"]["repairs"] == VIDEOS
    log = lines(tmp_path / "rejected.jsonl")
    assert len(log) == ITEMS
    assert set(log[0]) == {"id", "source", "video", "question", "stage", "code", "reason"}
    assert "There is no such card." in next(row["reason"] for row in log if row["code"] == "hallucinated")


def test_localisation_must_agree_with_where_the_question_came_from(videos: Path, tmp_path: Path) -> None:
    def change(shape: str, given: dict[str, Any], reply: dict[str, Any]) -> None:
        for clue in reply.get("clues", []):
            clue.update(start=clue["start"] + 8 if clue["start"] < 16 else 0, end=clue["start"] + 10)

    with serving(changed(change)) as server:
        found = synthesize(videos, tmp_path, server, "limit=1", code=1)
    assert set(found["rejections"]) <= {
        "localise/clue_elsewhere",
        "verify/wrong_answer",
        "verify/uncertain",
        "localise/invalid_reply",
    }
    assert found["rejections"]["localise/clue_elsewhere"] >= 1


def misbehaving(body: dict[str, Any], digest: str, nth: int) -> Misbehaviour | None:
    """Half of the requests go wrong, as their digest decides: on the way the first time, or always in what is said,
    until it is to be repaired."""
    if len(body["messages"]) == 2:
        kinds = [
            Misbehaviour("status", 500),
            Misbehaviour("status", 429, "0.02"),
            Misbehaviour("cut"),
            Misbehaviour("garbage"),
            Misbehaviour("text", text='{"think": "half a re'),
            Misbehaviour("text", text='{"reply": []}'),
        ]
        number = int(digest[:4], 16) % (2 * len(kinds))
        fault = kinds[number] if number < len(kinds) else None
        return fault if fault is None or fault.kind == "text" or nth == 0 else None
    return None


def test_a_misbehaving_endpoint_changes_the_price_only(videos: Path, tmp_path: Path) -> None:
    with serving(clue_model.reply) as server:
        calm = synthesize(videos, tmp_path / "calm", server)
    with serving(clue_model.reply, misbehaving) as server:
        wild = synthesize(videos, tmp_path / "wild", server)
        assert len(server.calls) > len(server.paid) > calm["items"]
    repairs = sum(stage["repairs"] for stage in wild["stages"].values())
    assert wild["samples"] == calm["samples"] and repairs > 0
    for name in ("samples.jsonl", "rejected.jsonl"):
        assert (tmp_path / "calm" / name).read_bytes() == (tmp_path / "wild" / name).read_bytes()


def test_concurrency_is_kept_and_changes_nothing(videos: Path, tmp_path: Path) -> None:
    for concurrency in (1, 7):
        with serving(clue_model.reply, misbehaving, delay_seconds=0.01) as server:
            synthesize(videos, tmp_path / str(concurrency), server, f"concurrency={concurrency}")
            assert server.most_busy <= concurrency
            assert concurrency == 1 or server.most_busy > 2
    assert outputs(tmp_path / "1") == outputs(tmp_path / "7")


def _forked(arguments: list[str], said: str, variables: dict[str, str]) -> None:
    os.environ.update(variables)
    log = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    raise SystemExit(run_command(main, arguments))


def started(arguments: list[str], said: Path, **variables: str) -> Any:
    """The command in a process of its own, with `variables` set, whose imports are done already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["videoseek.synthesis.command", "videoseek.stages.pipeline", "openai", "jsonschema"])
    process = context.Process(target=_forked, args=(arguments, str(said), variables))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment().items():
            patch.setenv(name, value)
        process.start()
    return process


def finished_replies(out: Path) -> set[str]:
    """Ids of the completions in the cache. A file that is there is whole."""
    return {json.loads(path.read_text())["id"] for path in (out / "cache").rglob("[!.]*.json")}


def test_kill_at_random_points_and_go_on(videos: Path, tmp_path: Path) -> None:
    """The bytes are those of an undisturbed run, and no reply that was kept is asked for again."""
    num_kills = 40 if FULL else 4
    chance = random.Random(11)
    with serving(clue_model.reply, misbehaving) as server:
        synthesize(videos, tmp_path / "calm", server)
        total = len(server.calls)
    with serving(clue_model.reply, misbehaving, delay_seconds=0.005) as server:
        out = tmp_path / "killed"
        arguments = ["synthesize", str(videos), f"out={out}", f"endpoint={server.url}", *SMALL]
        kept_before: dict[int, set[str]] = {}
        kills = 0
        while True:
            process = started(arguments, tmp_path / "said.txt")
            wanted = len(server.calls) + chance.randint(1, max(total // num_kills, 2))
            pause = chance.random() * 0.05
            while process.is_alive() and (len(server.calls) < wanted or kills >= num_kills):
                time.sleep(0.001)
            time.sleep(pause)
            process.kill()
            process.join()
            if process.exitcode == 0:
                break
            assert process.exitcode == -9, (tmp_path / "said.txt").read_text()
            kills += 1
            time.sleep(0.05)  # what was under way at the server comes to its end
            kept_before[len(server.calls)] = finished_replies(out)
        digest_of = {call.id: call.digest for call in server.paid}
        for number, kept in kept_before.items():
            again = {call.digest for call in server.calls[number:]}
            assert not {digest_of[id_] for id_ in kept} & again
        paid = Counter(call.digest for call in server.paid)
        repeated = sum(count - 1 for count in paid.values())
    print(f"{kills} kills, {len(paid)} different paid requests, {repeated} paid twice (under way at a kill)")
    assert kills >= min(num_kills, 3)
    assert repeated <= 4 * kills
    assert outputs(tmp_path / "killed") == outputs(tmp_path / "calm")


def test_shards_join_to_the_same_bytes(videos: Path, tmp_path: Path) -> None:
    def change(shape: str, given: dict[str, Any], reply: dict[str, Any]) -> None:
        if shape == "localise" and given["question"].startswith("What is on"):
            reply["clues"] = []

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    with serving(changed(change)) as server:
        shares = "shares=[0,1,1,0]"
        synthesize(videos, whole, server, shares)
        num_calls = len(server.calls)
        for index in (1, 2):
            arguments = ["synthesize", str(videos), f"out={parts}", f"endpoint={server.url}", *SMALL, shares]
            assert run_command(main, [*arguments, f"shard={index}/2"]) == 0
        assert len(server.calls) == 2 * num_calls
    sizes = [len(lines(parts / f"shard-{index}-of-2" / "items.jsonl")) for index in (1, 2)]
    assert sum(sizes) == ITEMS
    assert run_command(main, ["synthesize", f"out={parts}", "merge=true", "review=4"]) == 0
    assert outputs(parts) == outputs(whole)
    assert len(lines(whole / "surplus.jsonl")) == VIDEOS


def test_shards_that_do_not_belong_together(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(code: int, *keys: str) -> str:
        assert run_command(main, ["synthesize", f"out={tmp_path}", "merge=true", *keys]) == code
        return capsys.readouterr().err.splitlines()[-1]

    assert "found none" in refused(2)
    with serving(clue_model.reply) as server:
        base = ["synthesize", str(videos), f"out={tmp_path}", f"endpoint={server.url}", *SMALL]
        assert run_command(main, [*base, "shard=1/2"]) == 0
        assert "run shard=2/2 first" in refused(2)
        assert run_command(main, [*base, "shard=2/2", "seed=1"]) == 0
    assert "seed 1 instead of 0" in refused(2)
    assert "give it out and review alone" in refused(2, "seed=1")


def test_an_unfinished_item_is_no_verdict(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The endpoint is down for the judge; the next run asks what is left and nothing else."""

    def down(body: dict[str, Any], digest: str, nth: int) -> Misbehaviour | None:
        return Misbehaviour("status", 503) if shape_of(body) == "judge" else None

    with serving(clue_model.reply, down) as server:
        found = synthesize(videos, tmp_path, server, "limit=1", "attempts=2", code=1)
        assert found["unfinished"] == QUESTIONS and found["rejections"] == {"judge/unfinished": QUESTIONS}
    said = capsys.readouterr().err
    assert "went unanswered; the same command goes on" in said
    assert "the first: no answer after 2 tries: the endpoint says 503" in said
    with serving(clue_model.reply) as server:
        found = synthesize(videos, tmp_path, server, "limit=1", "attempts=2")
        assert [call.shape for call in server.calls] == ["judge"] * QUESTIONS
        assert found["samples"] == QUESTIONS and found["unfinished"] == 0


def test_questions_and_captions_that_are_there_are_not_made(videos: Path, tmp_path: Path) -> None:
    """The generator's own questions, one of them with a wrong answer, and a video with a caption.

    The clues that are found are the generator's, which neither the command nor the server sees.
    """
    given = [s for s in read_samples(videos.parent / "samples.jsonl") if s.kind.endswith("_w_tool")]
    records = [
        {"id": sample.id, "video": Path(sample.video).name, "question": sample.question}
        | {"options": list(sample.options), "answer": sample.answer}
        for sample in given
    ]
    single = next(s for s in given if s.kind == "clue_single_w_tool")
    wrong = next(letter for letter in "ABCD" if letter != single.answer)
    records += [next(r for r in records if r["id"] == single.id) | {"id": "wrong", "answer": wrong}]
    card = single.question.split()[4]
    told = {"start": single.clues[0][0], "end": single.clues[0][1], "text": f"a {card} card with rows"}
    records += [{"id": "told", "video": Path(single.video).name, "captions": [told]}]
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    with serving(clue_model.reply) as server:
        found = synthesize(path, tmp_path / "out", server, f"video_root={videos}")
        assert Counter(call.shape for call in server.calls)["caption"] == 0
        assert Counter(call.shape for call in server.calls)["question"] == 1
    assert found["rejections"]["verify/wrong_answer"] >= 1
    made = {sample.id: sample for sample in read_samples(tmp_path / "out/samples.jsonl", videos)}
    assert "wrong" not in made and "told-q03" in made
    for sample in given:
        assert made[sample.id].options == sample.options and made[sample.id].answer == sample.answer
        joined = len(sample.clues) == 2 and sample.clues[0][1] == sample.clues[1][0]
        assert joined or made[sample.id].clues == sample.clues


def test_a_broken_video_is_named_and_the_rest_goes_on(videos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    shutil.copy(videos / "train-00000.mp4", folder)
    (folder / "broken.mp4").write_bytes(b"not a video")
    with serving(clue_model.reply) as server:
        found = synthesize(folder, tmp_path / "out", server)
    assert found["samples"] == QUESTIONS and found["rejections"] == {"caption/not_video": 1}


def test_the_key_is_nowhere(videos: Path, tmp_path: Path) -> None:
    """The server quotes it in every error; a run that fails shows its whole traceback."""
    secret = {"SYNTHESIS_KEY": KEY, "VIDEOSEEK_TRACEBACK": "1"}

    def faults(body: dict[str, Any], digest: str, nth: int) -> Misbehaviour | None:
        if shape_of(body) == "judge":
            return Misbehaviour("status", 400)
        return Misbehaviour("status", 500) if nth == 0 else None

    keys = ["api_key_env=SYNTHESIS_KEY", "limit=1"]
    with serving(clue_model.reply, faults) as server:
        arguments = ["synthesize", str(videos), f"out={tmp_path / 'a'}", f"endpoint={server.url}", *SMALL, *keys]
        process = started(arguments, tmp_path / "said-1.txt", **secret)
        process.join()
        assert {call.authorization for call in server.calls} == {f"Bearer {KEY}"}
    with serving(clue_model.reply, lambda body, digest, nth: Misbehaviour("status", 401)) as server:
        arguments = ["synthesize", str(videos), f"out={tmp_path / 'b'}", f"endpoint={server.url}", *SMALL, *keys]
        process = started(arguments, tmp_path / "said-2.txt", **secret)
        process.join()
    assert "Traceback" in (tmp_path / "said-2.txt").read_text() and "401" in (tmp_path / "said-2.txt").read_text()
    rejected = lines(tmp_path / "a/rejected.jsonl")
    assert {row["code"] for row in rejected} == {"request_refused"} and "[key]" in rejected[0]["reason"]
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 20 and not [path for path in written if KEY.encode() in path.read_bytes()]


def test_dry_run_reckons_and_asks_nothing(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(clue_model.reply) as server:
        synthesize(videos, tmp_path / "out", server, "dry_run=true")
        said = capsys.readouterr().out
        assert not server.calls and not (tmp_path / "out").exists()
        synthesize(videos, tmp_path / "out", server)
        num_calls = len(server.calls)
    rows = {line.split()[0]: line.split()[1:] for line in said.splitlines() if line[:1].isalpha()}
    assert int(rows["all"][0]) == num_calls == sum(int(rows[name][0]) for name in STAGES)
    assert float(rows["all"][3]) > 0
    assert f"{VIDEOS} videos or lines, {ITEMS} questions" in said


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
def test_wrong_usage_is_one_sentence(
    arguments: list[str], words: str, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filled = [argument.replace("{videos}", str(videos)) for argument in arguments]
    assert run_command(main, ["synthesize", *filled, f"out={tmp_path}"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and words in said[0]


def test_help_names_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_command(main, ["synthesize", "--help"])
    shown = capsys.readouterr().out
    assert all(f"  {key} " in shown for key in ("endpoint", "api_key_env", "shares", "video.overview_tokens"))


def test_the_result_trains(videos: Path, tmp_path: Path, tiny: list[str]) -> None:
    with serving(clue_model.reply) as server:
        synthesize(videos, tmp_path / "made", server)
    run = tmp_path / "run"
    train = [f"data.sft=[{tmp_path / 'made/samples.jsonl'}]", f"data.video_root={videos}", f"output_dir={run}"]
    train += ["data.eval=[clueworld]", "stages=[sft]", "recipe=sft", "sft.steps=4"]
    said = forked([*(key for key in tiny if not key.startswith("recipe=")), *train], tmp_path)
    losses = [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 4 and losses[-1] < losses[0], said
    assert summary(run)


@pytest.fixture
def hostile(tmp_path: Path) -> Iterator[Path]:
    """A run whose model writes HTML wherever it may write."""
    bad = "<script>document.title='broken'</script><img src=x onerror=alert(1)>"

    def change(shape: str, given: dict[str, Any], reply: dict[str, Any]) -> None:
        if shape == "verify":
            reply["think"] = bad
        if shape == "judge":
            reply["analysis"] = bad
        if shape == "trajectory":
            reply["final"]["think"] = "I see it."
            for step in reply["steps"]:
                step["think"] = "I look."
        for clue in reply.get("clues", []):
            clue.update(cue=bad, finding=bad)

    folder = clueworld.prepare(tmp_path / "world", "train", 6, seed=5).parent / "videos"
    with serving(changed(change)) as server:
        synthesize(folder, tmp_path / "out", server)
    yield tmp_path / "out"


def test_the_review_page_shows_samples_and_escapes(hostile: Path) -> None:
    page = (hostile / "review.html").read_text()
    assert page.count("<article") == 4 and page.count("data:image/jpeg") > 40
    assert "<script" not in page and "onerror=alert(1)&gt;" in page and "src=x" not in page.replace("&lt;img src=x", "")


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium to show the page")
def test_the_review_page_is_shown_by_a_browser(hostile: Path, tmp_path: Path) -> None:
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", f"file://{hostile}/review.html"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    assert "<title>videoseek: synthesised samples for review</title>" in shown


@pytest.mark.skipif(not FULL, reason="Ray takes half a minute to start; runs with VIDEOSEEK_FULL=1")
def test_ray_gives_the_same_bytes(videos: Path, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, logging_level="error", runtime_env={"env_vars": environment()})
    try:
        with serving(clue_model.reply, misbehaving) as server:
            synthesize(videos, tmp_path / "local", server)
        with serving(clue_model.reply, misbehaving) as server:
            synthesize(videos, tmp_path / "ray", server, "driver=ray", "concurrency=3")
            assert server.most_busy <= 2 * 3 * 2
        assert outputs(tmp_path / "ray") == outputs(tmp_path / "local")
        with serving(clue_model.reply, lambda body, digest, nth: Misbehaviour("status", 401)) as server:
            synthesize(videos, tmp_path / "refused", server, "driver=ray", code=1)
    finally:
        ray.shutdown()

"""The whole page, made from a run's files: real videos, real episodes, and texts that try to break out."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from support.html_page import HOSTILE, Page
from support.tiny_world import native_engine

from videoseek.config import UsageError
from videoseek.config_merge import config_yaml, load_config
from videoseek.evaluation.scores import scores
from videoseek.metrics import RunError
from videoseek.model.attention import install_attention
from videoseek.model.policy import Policy
from videoseek.model.tiny import build_model, build_tokenizer, tiny_config
from videoseek.pages.report import write_report
from videoseek.report import main
from videoseek.rollout.environment import Environment
from videoseek.rollout.sampler import SamplingSettings
from videoseek.rollout.trajectories import write_trajectories
from videoseek.samples import clueworld
from videoseek.tools.crop import VideoCrop
from videoseek.trajectory.formats import FORMATS
from videoseek.trajectory.vocabulary import Vocabulary
from videoseek.types import Call, Episode, Sample

FORMAT = FORMATS["grounding"]("brief")


def looks(sample: Sample) -> list[str]:
    return [FORMAT.render_turn("here", Call(start, end, "medium"), None) for start, end in sample.clues]


def habits_of_sft(sample: Sample, index: int) -> tuple[str, ...]:
    """Right, wrong, a failed call or an unreadable one, in turn."""
    right = FORMAT.render_turn("seen", None, sample.answer)
    wrong = FORMAT.render_turn("guess", None, "B" if sample.answer == "A" else "A")
    outside = FORMAT.render_turn("far", Call(900, 904, "fine"), None)
    unreadable = '<think>x</think>\n<grounding>{"temporal_segment": [4, </grounding>'
    return [(*looks(sample), right), (*looks(sample), wrong), (outside, right), (unreadable, wrong)][index % 4]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run: `direct` is an untrained model's own sampling, the others act from a script."""
    folder = tmp_path_factory.mktemp("run")
    config = load_config(["recipe=sft_rl"])
    samples = clueworld.load(folder / "cache", "heldout", 24, seed=3)
    tokenizer = build_tokenizer(clueworld.phrases())
    model_config = tiny_config(tokenizer)
    vocabulary = Vocabulary(tokenizer, model_config.text_config.vocab_size)
    environment = Environment(vocabulary, FORMAT, VideoCrop(config.video), 4, 512)

    def act(sample: Sample, turns: tuple[str, ...]) -> Episode:
        return environment.replay(replace(sample, turns=turns))

    engine = native_engine(Policy(install_attention(build_model(model_config, 0))), environment)
    groups = {
        "direct": engine.rollout(samples, 2, 0, SamplingSettings(max_new_tokens_per_turn=8)),
        "sft": [[act(s, habits_of_sft(s, i + copy)) for copy in range(2)] for i, s in enumerate(samples)],
        "sft_rl": [[act(s, (*looks(s), FORMAT.render_turn("seen", None, s.answer)))] * 2 for s in samples[:-1]]
        + [[act(samples[-1], (FORMAT.render_turn("blind", None, "no idea"),))] * 2],
    }
    summary = {"recipe": "sft_rl", "seed": 3, "wall_seconds": 312.0}
    for name, sampled in groups.items():
        for key, value in scores(sampled, [group[:1] for group in sampled], "strict", 0.05, "grounding").items():
            summary[key if key.startswith("chance") else f"{key}/{name}"] = value
        write_trajectories(folder, f"eval_{name}", sampled)
    write_trajectories(folder, "grpo_step_000012", groups["sft"][:4])
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "config.yaml").write_text(config_yaml(config))
    attempts = [
        {"command": ["train", name], "started_at": "2026-01-02T03:04:05+00:00", "wall_seconds": 156.0}
        for name in ("first", HOSTILE)
    ]
    report = {"python": "3.11", "command": ["train", HOSTILE], "cuda": None, "attempts": attempts}
    (folder / "env.json").write_text(json.dumps(report))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics()))
    return folder


def metrics() -> Iterator[dict[str, float | str | None]]:
    for stage in ("direct", "sft"):
        for step in range(1, 101):
            row = {"stage": stage, "step": step, "loss": 4.0 / step, "grad_norm": 1.0, "perf/tokens_per_s": 6e3}
            yield row | ({"eval/accuracy": step / 100} if step % 25 == 0 else {})
    for step in range(1, 13):
        gap = None if step == 5 else 1e-6 * step
        yield {"stage": "grpo", "step": step, "reward/mean": 1 + step / 40, "sampling/logp_diff_max": gap}


@pytest.fixture
def copy(run_folder: Path, tmp_path: Path) -> Path:
    """The run's files in a folder of their own; its videos stay where they are."""
    return Path(shutil.copytree(run_folder, tmp_path / "run", ignore=shutil.ignore_patterns("cache", "report.html")))


def edit(path: Path, change: dict[str, object]) -> None:
    """Overwrites fields of every record of a JSONL file."""
    records = [json.loads(line) | change for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_report_shows_a_finished_run(run_folder: Path) -> None:
    path = write_report(run_folder)
    assert path == run_folder / "report.html"
    assert path.stat().st_size < 3 * 2**20
    page = Page(path)
    assert page.text.count("videoseek: sft_rl, seed 3") == 2, "title and heading"
    for words in (
        "SFT + RL answers 95.8 % of the held-out questions",
        "guessing gets",
        "5 min 12 s",
        "train first",
        "command 2, 2026-01-02T03:04:05+00:00",
        "Groups in training",
    ):
        assert words in page.text
    for chart in ("Loss", "Held-out accuracy, greedy", "Reward", "Largest log-prob gap, sampler to trainer"):
        assert f"{chart} by step" in page.values("aria-label")
    assert "Clue score by step" not in page.values("aria-label"), "never logged here"
    assert 5 <= page.names["article"] <= 12
    for reason in ("SFT wrong, SFT + RL right", "two clues", "no tool needed", "a faulty call", "SFT + RL wrong"):
        assert reason in page.text


def test_episodes_show_what_was_seen_and_said(run_folder: Path) -> None:
    page = Page(write_report(run_folder))
    assert "Call 1 failed: window outside" in page.text
    assert "Call 1 failed: no readable call" in page.text
    assert re.search(r"Crop 1: \d+\.0–\d+\.0 s, medium, 2 frames of 56 × 56 px, 4 tokens", page.text)
    assert "right in 2 of 2 samples" in page.text
    assert page.values("class").count("strip") == page.names["article"]
    assert page.names["img"] >= 16 * page.names["article"], "an overview each, and crops"
    assert {"crop", "crop failed", "crop-number"} <= set(page.values("class"))


def test_nothing_is_fetched(run_folder: Path) -> None:
    page = Page(write_report(run_folder))
    links = [value for name in ("src", "href", "srcset", "action", "data", "poster") for value in page.values(name)]
    assert links and all(link.startswith(("data:", "#")) for link in links)
    assert not re.search(r"url\(|@import", page.source)


def test_equal_files_give_equal_pages(run_folder: Path) -> None:
    assert write_report(run_folder).read_bytes() == write_report(run_folder).read_bytes()


def test_hostile_text_is_escaped(copy: Path) -> None:
    before = Page(write_report(copy)).names
    turns = [{"role": HOSTILE, "text": HOSTILE + "\ud800", "num_tokens": 3}] * 2
    change = {"question": HOSTILE, "options": [HOSTILE, "B"], "prediction": HOSTILE, "turns": turns, "id": HOSTILE}
    for path in (copy / "trajectories").iterdir():
        edit(path, change | {"stop_reason": HOSTILE, "rewards": {"accuracy": 0.0, HOSTILE: 1.0}})
    (copy / "config.yaml").write_bytes(HOSTILE.encode() + b"\xff\xfe</pre>")
    page = Page(write_report(copy))
    assert page.names["script"] == 1 == before["script"]
    assert page.names["article"] > 0
    assert not any(name.startswith("on") for _, name, _ in page.attributes)
    assert not re.search("[\0\x1b\ud800-\udfff]", page.source)
    assert "<script>document.title='broken'</script>" in page.text


def test_missing_videos_are_named_in_place_of_pictures(copy: Path) -> None:
    for path in (copy / "trajectories").iterdir():
        edit(path, {"video": "/gone/holiday.mp4"})
    page = Page(write_report(copy))
    assert page.names["img"] == 0
    assert "No picture: '/gone/holiday.mp4' does not exist" in page.text
    assert page.names["article"] > 0


PARTS = ("config.yaml", "env.json", "summary.json", "metrics.jsonl", "trajectories")


@pytest.mark.parametrize("kept", ["config.yaml", "summary.json", "metrics.jsonl", "trajectories"])
def test_each_part_is_shown_without_the_others(copy: Path, kept: str) -> None:
    for name in set(PARTS) - {kept}:
        path = copy / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    page = Page(write_report(copy))
    shown = {
        "config.yaml": "config.yaml",
        "summary.json": "Accuracy, greedy",
        "metrics.jsonl": "Loss",
        "trajectories": "Episodes",
    }
    assert {words: words in page.text for words in shown.values()} == {
        words: name == kept for name, words in shown.items()
    }


def test_report_shows_a_run_with_one_model(copy: Path) -> None:
    for name in ("eval_direct", "eval_sft_rl", "grpo_step_000012"):
        (copy / "trajectories" / f"{name}.jsonl").unlink()
    (copy / "summary.json").write_text('{"accuracy/sft": 0.5}')
    page = Page(write_report(copy))
    assert "SFT answers 50.0 % of the held-out questions." in page.text
    assert "RL" not in page.text.split("config.yaml")[0].replace("Reinforcement learning", "")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("summary.json", "[1]", "holds no JSON object"),
        ("env.json", "{", "is not JSON"),
        ("trajectories/eval_sft.jsonl", '{"id": "x"}\n', "line 1 is not a recorded episode: KeyError 'video'"),
        ("trajectories/eval_sft.jsonl", "3\n", "line 1 is not a recorded episode"),
        ("trajectories/eval_sft.jsonl", "[" * 100_000 + "\n", "line 1 is not a recorded episode"),
    ],
    ids=["no-object", "torn-json", "missing-field", "number", "deep"],
)
def test_foreign_files_are_named(copy: Path, name: str, content: str, words: str) -> None:
    (copy / name).write_text(content)
    with pytest.raises(RunError, match=re.escape(words)) as failure:
        write_report(copy)
    assert name.rpartition("/")[2] in str(failure.value)
    assert not (copy / "report.html").exists()


def test_fewer_clips_than_executed_calls_are_refused(copy: Path) -> None:
    path = copy / "trajectories/eval_sft_rl.jsonl"
    edit(path, {"clips": []})
    with pytest.raises(RunError, match=r"line \d+ is not a recorded episode"):
        write_report(copy)


def test_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no run"):
        write_report(tmp_path)


def test_command(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(run_folder)])
    assert capsys.readouterr().out == f"{run_folder / 'report.html'}\n"
    with pytest.raises(UsageError, match="output folder '/nowhere/run' does not exist"):
        main(["/nowhere/run"])
    with pytest.raises(UsageError, match="no folder was given"):
        main([])


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium; there is none on the path")
@pytest.mark.parametrize("width", [1280, 500], ids=["desktop", "phone"])
def test_chromium_draws_the_page(run_folder: Path, tmp_path: Path, width: int) -> None:
    """The script chooses one question, nothing is wider than the screen, and the picture is not blank."""
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += " --disable-component-update --disable-sync --hide-scrollbars"
    shot = tmp_path / "page.png"
    command = ["chromium", *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},2400"]
    url = write_report(run_folder).as_uri()
    subprocess.run([*command, f"--screenshot={shot}", url], check=True, capture_output=True, timeout=120)
    with Image.open(shot) as picture:
        assert picture.width == width
        colours = picture.convert("RGB").getcolors(2**24)
    assert colours is not None and len(colours) > 200
    done = subprocess.run([*command, "--dump-dom", url], check=True, capture_output=True, text=True, timeout=120)
    assert done.stdout.count('class="question chosen"') == 1
    assert '<html lang="en" class="choosing">' in done.stdout

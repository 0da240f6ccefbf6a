from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from videoseek.command import run_command
from videoseek.model.tiny import build_tokenizer
from videoseek.rewards.trajectory_guided import write_rewards
from videoseek.samples.clueworld import phrases
from videoseek.score import main
from videoseek.trajectory.builder import EpisodeBuilder
from videoseek.trajectory.formats import FORMATS
from videoseek.trajectory.vocabulary import Vocabulary
from videoseek.trajectory_record import TrajectoryRecord
from videoseek.types import CallRecord, Clip, Episode, Fault, Sample, StopReason

CALL = '<think>x</think>\n<grounding>{"temporal_segment": [10, 20], "sampling_strategy": "fine"}</grounding>'
GOOD = {
    "kind": "clue_single_w_tool",
    "answer": "A",
    "clues": [[10, 20], [40, 50]],
    "turns": [CALL, "<think>y</think>\n<answer>A</answer>"],
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "runs.jsonl"
    path.write_text(json.dumps(GOOD) + "\n\n" + json.dumps(GOOD | {"kind": "clue_multi_wo_tool", "id": 7}) + "\n")
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = run_command(main, [str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_score_prints_one_line_for_each_trajectory(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, file, "variant=public_code")
    rows = [json.loads(line) for line in out.splitlines()]
    assert (code, err.count("\n")) == (0, 1)
    assert err.startswith("videoseek: means of 2 trajectories: reward 2.656, accuracy 1.000, format 1.000, ")
    assert [row["reward"] for row in rows] == pytest.approx([2.8125, 2.5], abs=1e-4)
    assert list(rows[0]) == ["reward", "accuracy", "format", "clue_score", "decay", "bonus", "calls"]


@pytest.mark.parametrize(("extra", "reward"), [([], 2.75), (["variant=paper"], 2.8125), (["decay=0"], 2.75)])
def test_settings_are_applied(file: Path, capsys: pytest.CaptureFixture[str], extra: list[str], reward: float) -> None:
    _, out, _ = run(capsys, *extra, file)
    assert json.loads(out.splitlines()[0])["reward"] == pytest.approx(reward)


def test_executed_flags_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_text(json.dumps(GOOD | {"executed": [False]}))
    assert json.loads(run(capsys, path)[1])["reward"] == pytest.approx(2.0)


def line(**changes: object) -> str:
    return json.dumps(GOOD | changes)


BAD = {
    "not JSON": ("{", "not JSON"),
    "not an object": ("[1]", "not a JSON object"),
    "bottomless": ("[" * 100_000, "nested too deeply"),
    "a field missing": (json.dumps({"kind": "clue_single_w_tool"}), "field 'answer' is missing"),
    "no turns": (json.dumps({"kind": "clue_single_w_tool", "answer": "A"}), "field 'turns' is missing"),
    "no recorded episode": (line(token_ids=[]), "not a recorded episode: KeyError 'id'"),
    "options are numbers": (line(options=[1]), "options must be a list of texts"),
    "unknown kind": (line(kind="other"), "kind 'other' is not one of"),
    "kind is a list": (line(kind=["x"]), "kind and answer must be texts"),
    "answer is a number": (line(answer=1), "kind and answer must be texts"),
    "turns is a text": (line(turns="<think>"), "turns must be a list of texts"),
    "a turn is null": (line(turns=[None]), "turns must be a list of texts"),
    "clues is a number": (line(clues=3), "clues must be a list"),
    "a clue of three": (line(clues=[[1, 2, 3]]), "must be [start, end]"),
    "a clue in words": (line(clues=[["1", "2"]]), "must be [start, end]"),
    "a clue of no length": (line(clues=[[5, 5]]), "must satisfy 0 <= start < end"),
    "a clue reversed": (line(clues=[[20, 10]]), "must satisfy 0 <= start < end"),
    "a clue before the video": (line(clues=[[-5, 5]]), "must satisfy 0 <= start < end"),
    "a clue without end": (line(clues=[[0, float("inf")]]), "must be [start, end]"),
    "a clue beyond floats": (line(clues=[[0, 10**400]]), "must be [start, end]"),
    "nothing to ground": (line(kind="temporal_grounding", clues=[]), "at least one clue"),
    "flags in words": (line(executed=["yes"]), "executed must be a list of true or false"),
    "flags do not fit": (line(executed=[True, True]), "2 flags for 1 well-formed calls"),
}


@pytest.mark.parametrize(("text", "complaint"), BAD.values(), ids=BAD.keys())
def test_a_bad_line_is_named_and_nothing_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, complaint: str
) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + text + "\n")
    code, out, err = run(capsys, path)
    assert (code, out) == (2, "")
    assert f"{path}, line 2: " in err and complaint in err
    assert err.count("\n") == 1 and len(err) < 500


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "one file is wanted, got 0"),
        (["a", "b"], "one file is wanted, got 2"),
        (["a", "varian=paper"], "unknown key 'varian' on the command line; the closest are variant"),
        (["a", "variant=lax"], "variant must be one of strict, paper, public_code, got 'lax'"),
        (["a", "decay=much"], "decay must be a number, got 'much'"),
        (["a", "decay=nan"], "decay must be finite, got nan"),
        (["a", "decay=2"], "decay must be at most 1, got 2.0"),
        (["a", "-v"], "'-v'"),
        (["/nowhere.jsonl"], "/nowhere.jsonl cannot be read: No such file"),
    ],
)
def test_wrong_usage(capsys: pytest.CaptureFixture[str], arguments: list[str], complaint: str) -> None:
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "") and complaint in err


def test_a_file_that_is_not_text_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_bytes(b"\xff\xfe\x00")
    assert "cannot be read: not UTF-8" in run(capsys, path)[2]


def test_the_command_runs_as_a_module(file: Path) -> None:
    command = [sys.executable, "-m", "videoseek.score", str(file), "variant=public_code"]
    done = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": ":".join(sys.path)}, check=True)
    assert len(done.stdout.splitlines()) == 2


FUNCTIONS = """
def brevity(completions, completion_ids, prompts, answer, **kwargs):
    return [float(len(turns) + 10 * len(ids) + 100 * len(prompt)) for turns, ids, prompt in
            zip(completions, completion_ids, prompts)]

def first_only(completions, **kwargs):
    return [1.0] + [None] * (len(completions) - 1)
"""


def test_reward_functions_of_the_user_stand_beside_the_parts(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    functions = file.with_name("mine.py")
    functions.write_text(FUNCTIONS)
    code, out, err = run(capsys, file, f"functions=[{functions}:brevity,{functions}:first_only]")
    rows = [json.loads(line) for line in out.splitlines()]
    assert [(row["brevity"], row["first_only"]) for row in rows] == [(2, 1), (2, None)]
    assert code == 0 and "brevity 2.000, first_only 1.000" in err
    code, out, err = run(capsys, file, "functions=[nothere.py:f]")
    assert (code, out) == (1, "") and "there is no file nothere.py" in err


def test_a_sample_with_recorded_turns_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, Path(__file__).parents[3] / "data/samples/videoseek.jsonl")
    assert code == 0 and all(json.loads(row)["accuracy"] == 1 for row in out.splitlines())


def hermes_episode(vocabulary: Vocabulary, executed: bool) -> Episode:
    """Returns an episode with one exact call, which returned its clip or failed, and the right answer."""
    sample = Sample("q", "v.mp4", "Which?", "A", "clue_single_w_tool", ("x", "y"), ((0.0, 4.0),))
    clip = Clip("v.mp4", 0.0, 4.0, (1.0, 3.0), 56, 56, 0.5)
    builder = EpisodeBuilder(sample, vocabulary, FORMATS["hermes"]("brief"))
    builder.prompt(clip)
    call = '{"name": "crop_video", "arguments": {"temporal_segment": [0, 4], "sampling_strategy": "fine"}}'
    parsed = builder.assistant_text(f"<think>x</think>\n<tool_call>{call}</tool_call>")
    failed = Fault("unreadable_video", "No.")
    record = CallRecord(0, *parsed.calls, None if executed else failed, clip if executed else None)
    assert builder.observe([record], max_tokens=10_000)
    builder.assistant_text("<think>y</think>\n<answer>A</answer>")
    return builder.finish(StopReason.ANSWERED)


def test_the_trajectories_of_a_run_score_as_in_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two episodes of a run in the other call format: the rewards that the run wrote come out, tokens included."""
    folder = tmp_path / "run/trajectories"
    folder.mkdir(parents=True)
    (tmp_path / "run/config.yaml").write_text("prompt: {format: hermes}\n")
    tokenizer = build_tokenizer(phrases())
    vocabulary = Vocabulary(tokenizer, len(tokenizer))
    episodes = [hermes_episode(vocabulary, executed) for executed in (True, False)]
    write_rewards(episodes, call_format="hermes")
    path = folder / "eval_x.jsonl"
    path.write_text("".join(json.dumps(TrajectoryRecord.from_episode(e).to_json()) + "\n" for e in episodes))
    (tmp_path / "mine.py").write_text(FUNCTIONS)
    code, out, _ = run(capsys, path, f"functions=[{tmp_path / 'mine.py'}:brevity]")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    for row, episode in zip(rows, episodes, strict=True):
        assert {name: row[name] for name in episode.rewards} == pytest.approx(episode.rewards)
        assert row["brevity"] == 3 + 10 * (len(episode.token_ids) - episode.prompt_length) + 200
    assert rows[0]["reward"] > rows[1]["reward"]
    assert "1 flags for 0 well-formed calls" in run(capsys, path, "format=grounding")[2]

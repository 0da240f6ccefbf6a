"""The `check` command on data that is broken in every way that we know of, whole runs of it as a user types them."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import pytest
from support import broken_data

from videoseek.command import run_command
from videoseek.data import main
from videoseek.samples.rules import is_error

ROOT = Path(__file__).parents[3]
#: Both packages of this checkout, whether or not another checkout is installed.
SOURCES = os.pathsep.join([str(ROOT / "src"), str(ROOT / "kernels")])


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


def run(*arguments: object) -> Done:
    """The command in this process: a fresh one takes seconds to import torch."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = run_command(main, list(map(str, arguments)))
        except SystemExit as ending:
            code = int(ending.code or 0)
    return Done(code, out.getvalue(), err.getvalue())


def start(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    """The command in a process of its own."""
    command = [sys.executable, "-m", "videoseek.data", *map(str, arguments)]
    return subprocess.Popen(command, text=True, env=os.environ | {"PYTHONPATH": SOURCES}, **options)


def codes_by_place(report: Path) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for finding in json.loads(report.read_text())["findings"]:
        found.setdefault(finding["where"], set()).add(finding["code"])
    return found


def test_check_finds_every_fault_and_no_other(tmp_path: Path) -> None:
    files, held_out, expected = broken_data.build(tmp_path)
    report = tmp_path / "report.json"
    faults = [place for place, codes in expected.items() if codes]
    assert len(faults) >= 40
    arguments = ["check", *files, f"held_out=[{held_out}]", "need_turns=true", f"report={report}", "workers=2"]
    process = start(*arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    stdout, stderr = process.communicate()
    assert process.returncode == 1, stderr
    assert codes_by_place(report) == {place: codes for place, codes in expected.items() if codes}
    summary = json.loads(report.read_text())
    num_errors = sum(finding["severity"] == "error" for finding in summary["findings"])
    assert summary["num_errors"] == num_errors and summary["num_warnings"] == len(summary["findings"]) - num_errors
    for code in {code for codes in expected.values() for code in codes}:
        assert f"{'error' if is_error(code) else 'warning':<8} {code} " in stdout
    assert f"{num_errors} errors" in stderr.splitlines()[-1]


def write_records(path: Path, videos: Sequence[str], **change: Any) -> Path:
    records = [broken_data.record(i) | {"video": video} | change for i, video in enumerate(videos)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`good.jsonl`: forty records, each about a video of its own."""
    folder = tmp_path_factory.mktemp("good")
    first = folder / "0.mp4"
    broken_data.write_video(first, broken_data.steady(80, 8), options=broken_data.x264(8))
    for index in range(1, 40):
        (folder / f"{index}.mp4").hardlink_to(first)
    write_records(folder / "good.jsonl", [f"{index}.mp4" for index in range(40)])
    return folder


def test_a_killed_run_goes_on_where_it_stopped(folder: Path, tmp_path: Path) -> None:
    cache, report = tmp_path / "cache", tmp_path / "report.json"
    arguments = ["check", folder / "good.jsonl", f"cache={cache}", f"report={report}", "workers=1"]
    first = start(*arguments, stderr=subprocess.DEVNULL)
    while not cache.exists() or cache.read_bytes().count(b"\n") < 12:
        assert first.poll() is None, "it ended before it was killed"
        time.sleep(0.002)
    first.kill()
    first.wait()
    known = cache.read_bytes()
    assert 12 <= known.count(b"\n") < 81
    cache.write_bytes(known[:-7])  # as if the kill had come in the middle of a line
    assert run(*arguments).returncode == 0
    lines = cache.read_bytes().split(b"\n")
    assert b"\n".join(lines).startswith(known[: known[:-7].rfind(b"\n")])
    keys = [json.loads(line)[0] for line in lines[1:] if line.startswith(b"[") and line.endswith((b"}]", b"null]"))]
    assert len(keys) == len(set(keys)) == 80, "forty videos and forty lengths, none of them measured twice"
    assert json.loads(report.read_text())["num_records"] == 40
    before = cache.read_bytes()
    (folder / "7.mp4").unlink()
    broken_data.write_video(folder / "7.mp4", broken_data.steady(24, 8), options=broken_data.x264(8))
    assert run(*arguments).returncode == 1, "a changed file is looked at again"
    assert codes_by_place(report) == {f"{folder / 'good.jsonl'}, line 8": {"clue_outside", "call_outside"}}
    assert cache.read_bytes().startswith(before)
    (folder / "7.mp4").unlink()
    (folder / "7.mp4").hardlink_to(folder / "0.mp4")


def test_warnings_alone_exit_with_zero(folder: Path, tmp_path: Path) -> None:
    path = write_records(tmp_path / "rl.jsonl", ["0.mp4"], turns=[], clues=[])
    done = run("check", path, f"video_root={folder}")
    assert done.returncode == 0 and "warning  no_clue " in done.stdout
    assert "1 records of 1 files, 1 videos: 0 errors, 1 warnings" in done.stdout


def test_metadata_only_opens_nothing(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    path = write_records(tmp_path / "data.jsonl", ["text.mp4", "gone.mp4"], clues=[[0, 999]])
    report = tmp_path / "report.json"
    assert run("check", path, "metadata_only=true", f"report={report}").returncode == 1
    assert codes_by_place(report) == {f"{path}, line 2": {"missing_file"}}


def test_quotas_and_limits_come_from_the_recipe_and_the_command_line(folder: Path) -> None:
    path = folder / "good.jsonl"
    assert "0 errors" in run("check", path, "recipe=sft_rl", "max_tokens=1500").stdout
    done = run("check", path, "recipe=sft_rl", "max_tokens=100")
    assert done.returncode == 1 and "too_many_tokens" in done.stdout
    assert "(4 of the overview, 2 of crops, " in done.stdout


def test_no_control_character_of_a_record_reaches_the_terminal(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "\x1b[31mred.mp4").hardlink_to(folder / "0.mp4")
    done = run("check", write_records(tmp_path / "data.jsonl", ["\x1b[31mred.mp4"], clues=[[90, 95]]))
    assert "\x1b" not in done.stdout and r"\x1b[31mred.mp4 (10.0 seconds)" in done.stdout


def test_a_held_out_video_is_recognised_by_its_content(folder: Path, tmp_path: Path) -> None:
    """Whatever its name: as one file, and as a folder of frames."""
    (tmp_path / "other.mp4").write_bytes((folder / "0.mp4").read_bytes())
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        broken_data.write_frames(tmp_path / name, [(64, 48)] * (3 if name == "c" else 4))
    data = write_records(
        tmp_path / "data.jsonl", ["other.mp4", "a", "c"], clues=[], turns=[], kind="clue_single_wo_tool"
    )
    held_out = write_records(tmp_path / "held_out.jsonl", ["own.mp4", "b"])
    (tmp_path / "own.mp4").hardlink_to(folder / "0.mp4")
    report = tmp_path / "report.json"
    done = run("check", data, f"held_out=[{held_out}]", "metadata_only=true", f"report={report}")
    assert done.returncode == 1
    assert codes_by_place(report) == {f"{data}, line 1": {"leakage"}, f"{data}, line 2": {"leakage"}}
    assert str(tmp_path / "own.mp4") in done.stdout


def test_unreadable_held_out_records_and_videos_are_findings(folder: Path, tmp_path: Path) -> None:
    """Else a wrong root would pass for a clean split."""
    held_out = write_records(tmp_path / "held_out.jsonl", ["gone.mp4", "gone.mp4"])
    held_out.write_text(held_out.read_text() + "{\n")
    report = tmp_path / "report.json"
    arguments = [folder / "good.jsonl", f"held_out=[{held_out}]", "metadata_only=true", f"report={report}"]
    assert run("check", *arguments).returncode == 1
    assert codes_by_place(report) == {f"{held_out}, line 1": {"missing_file"}, f"{held_out}, line 3": {"bad_json"}}


def test_a_folder_stands_for_its_data_files(folder: Path, tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.json"):
        write_records(tmp_path / name, ["0.mp4"], id=name)
    (tmp_path / "notes.txt").write_text("no data")
    (tmp_path / "dataset_info.json").write_text("{}")
    arguments = ["check", tmp_path, f"video_root={folder}", "metadata_only=true", f"report={tmp_path}/report.json"]
    for _ in range(2):  # the report of the first run lies in the folder
        done = run(*arguments)
        assert done.returncode == 0 and "2 records of 2 files, 1 videos" in done.stdout
    (tmp_path / "sub").mkdir()
    done = run("check", tmp_path / "sub")
    assert done.returncode == 2 and "holds no data file (.json .jsonl .parquet)" in done.stderr


def test_files_of_a_folder_that_are_not_read_are_named(folder: Path, tmp_path: Path) -> None:
    for name in ("a.jsonl.gz", "B.JSONL", "notes.txt"):
        (tmp_path / name).touch()
    done = run("check", tmp_path)
    assert done.returncode == 2
    assert "holds no data file (.json .jsonl .parquet); not read: 'B.JSONL', 'a.jsonl.gz'" in done.stderr
    for index in range(5):
        (tmp_path / f"c{index}.json.zst").touch()
    write_records(tmp_path / "good.jsonl", ["0.mp4"])
    done = run("check", tmp_path, f"video_root={folder}", "metadata_only=true")
    assert done.returncode == 0 and "1 records of 1 files" in done.stdout
    names = "'B.JSONL', 'a.jsonl.gz', 'c0.json.zst', 'c1.json.zst', 'c2.json.zst' and 2 more"
    assert f"only files in .json .jsonl .parquet are read; not read: {names}\n" in done.stderr


def test_a_key_that_occurs_twice_is_a_warning(folder: Path, tmp_path: Path) -> None:
    path = write_records(tmp_path / "data.jsonl", ["0.mp4"])
    path.write_text(path.read_text().replace('"answer"', '"answer": "Z", "answer"'))
    done = run("check", path, f"video_root={folder}", "metadata_only=true")
    assert done.returncode == 0, done.stdout
    assert "warning  repeated_key " in done.stdout and "an object holds the key 'answer' twice" in done.stdout


def test_videos_are_opened_in_worker_processes_only(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("a video was opened in this process")

    monkeypatch.setattr(av, "open", refuse)
    for arguments in (["check"], ["stats"], ["show", "index=1", f"out={tmp_path}/page.html"]):
        verb, *keys = arguments
        done = run(verb, folder / "good.jsonl", *keys)
        assert done.returncode == 0, done.stderr


def test_a_video_given_as_a_data_file_is_one_error(folder: Path) -> None:
    done = run("check", folder / "0.mp4")
    assert done.returncode == 1
    assert f"    {folder / '0.mp4'}, line 1: no text in UTF-8: byte " in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["check"], "no data file was given"),
        (["check", "gone.jsonl"], "data file 'gone.jsonl' does not exist"),
        (["check", "{good}", "held_out=[gone.jsonl]"], "data file 'gone.jsonl' does not exist"),
        (["check", "{good}", "report=report.txt"], "report=report.txt must end in .json"),
        (["check", "{good}", "report=nowhere/report.json"], "in a folder that exists"),
        (["check", "{good}", "cache={good}"], "is not a file of this command"),
        (["check", "{good}", "format=riddle"], "is not one of videoseek"),
        (["check", "{good}", "colour=red"], "unknown key 'colour'"),
        (["check", "{good}", "workers=-1"], "workers must be at least 0"),
    ],
)
def test_wrong_usage_is_one_sentence(folder: Path, arguments: list[str], words: str) -> None:
    done = run(*(argument.format(good=folder / "good.jsonl") for argument in arguments))
    assert done.returncode == 2 and words in done.stderr.splitlines()[-1], done.stderr


def test_a_missing_model_is_reported_before_any_reading(folder: Path) -> None:
    done = run("check", folder / "good.jsonl", "model=nowhere")
    assert done.returncode == 1 and "no config.json in nowhere" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_help_names_every_key() -> None:
    done = run("check", "--help")
    assert done.returncode == 0
    for key in ("need_turns", "held_out", "report", "cache", "workers", "metadata_only", "video.overview_tokens"):
        assert f"  {key}" in done.stdout

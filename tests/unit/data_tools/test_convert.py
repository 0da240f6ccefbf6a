from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from videoseek.command import run_command
from videoseek.data import main
from videoseek.data_tools.settings import ConvertSettings
from videoseek.samples.readers import Reader, detect_format
from videoseek.samples.readers.rows import VideoPaths
from videoseek.samples.schema import read_samples

SAMPLES = Path(__file__).parents[3] / "data/samples"
SOURCES = [str(SAMPLES / name) for name in ("seeker_sft_single_w_tool.json", "sharegpt.json", "trl.jsonl")]
GOOD = {"id": "a", "video": "v.mp4", "question": "Where?", "answer": "B", "kind": "clue_single_w_tool"}


def convert(*arguments: object) -> int:
    return run_command(main, ["convert", *map(str, arguments)])


def test_files_of_several_formats_become_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "all.jsonl"
    assert convert(*SOURCES, f"out={out}") == 0
    message = capsys.readouterr()
    assert [line.rpartition(": ")[2] for line in message.out.splitlines()[:3]] == ["seeker_sft", "sharegpt", "trl"]
    assert f"{out}: videoseek, 6 samples, 0 passed over" in message.out
    assert f"read it with data.video_root={SAMPLES}/videos" in message.out
    assert "convert" in message.err, "progress"
    samples = read_samples(out, Path("/"))
    expected = [row.sample for source in SOURCES for row in Reader(Path(source), None, VideoPaths()).rows(set())]
    assert samples == expected


@pytest.mark.parametrize(("to", "name"), [("sharegpt", "out.json"), ("verl", "out.parquet")])
def test_other_formats_restore_the_samples(to: str, name: str, tmp_path: Path) -> None:
    ours, theirs, again = tmp_path / "a.jsonl", tmp_path / name, tmp_path / "b.jsonl"
    assert convert(*SOURCES, f"out={ours}") == 0
    assert convert(ours, f"out={theirs}", f"to={to}", "video_root=/") == 0
    assert detect_format(theirs) == to
    assert convert(theirs, f"out={again}", "video_root=/") == 0
    assert again.read_bytes() == ours.read_bytes()


def test_paths_are_mapped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = SAMPLES / "converted-for-a-test.jsonl"
    try:
        source = SAMPLES / "paravt.parquet"
        assert convert(source, f"out={out}", "video_prefixes=[__VIDEO_ROOT__/=>]") == 0
        assert [json.loads(line)["video"] for line in out.read_text().splitlines()] == ["videos/cards.mp4"] * 3
        assert "read it with" not in capsys.readouterr().out, "videos lie beside the file"
    finally:
        out.unlink(missing_ok=True)


def test_bad_records_are_counted_and_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "s.jsonl", tmp_path / "out.jsonl"
    bad = ["{", json.dumps(GOOD | {"kind": "riddle"}), "}", json.dumps(GOOD | {"id": "b"})]
    source.write_text("\n".join([json.dumps(GOOD), *bad]))
    assert convert(source, f"out={out}") == 1
    message = capsys.readouterr().err
    assert f"          2  bad_json           {source}, line 2: " in message
    assert f"          1  bad_kind           {source}, line 3: " in message
    assert "videoseek: 3 of 5 records cannot be used; nothing was written; bad_samples=skip passes over them" in message
    assert sorted(os.listdir(tmp_path)) == ["s.jsonl"]
    assert convert(source, f"out={out}", "bad_samples=skip") == 0
    message = capsys.readouterr()
    assert "2 samples, 3 passed over" in message.out and "bad_kind" in message.err
    assert [sample.id for sample in read_samples(out)] == ["a", "b"]


def test_ids_are_unique_over_all_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "one.jsonl").write_text(json.dumps(GOOD))
    (tmp_path / "two.jsonl").write_text(json.dumps(GOOD))
    assert convert(tmp_path / "one.jsonl", tmp_path / "two.jsonl", f"out={tmp_path}/out.jsonl") == 1
    assert "duplicate_id       " + str(tmp_path / "two.jsonl") in capsys.readouterr().err


def test_an_existing_file_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("mine")
    assert convert(*SOURCES, f"out={out}") == 2
    assert "exists already; overwrite=true replaces it" in capsys.readouterr().err and out.read_text() == "mine"
    (tmp_path / "bad.jsonl").write_text("{")
    assert convert(tmp_path / "bad.jsonl", f"out={out}", "overwrite=true", "format=videoseek") == 1
    assert "videoseek: 1 of 1 records cannot be used" in capsys.readouterr().err and out.read_text() == "mine"
    assert convert(tmp_path / "bad.jsonl", f"out={out}", "overwrite=true", "format=trl", "bad_samples=skip") == 1
    assert "no record can be used" in capsys.readouterr().err and out.read_text() == "mine"
    assert convert(*SOURCES, f"out={out}", "overwrite=true") == 0
    assert len(read_samples(out, Path("/"))) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["out=x.jsonl"], "files to read are missing"),
        ([SOURCES[0]], "out= is missing"),
        ([SOURCES[0], "out=x.json"], "a file of this format ends in .jsonl, got x.json"),
        ([SOURCES[0], "out=x.jsonl", "to=csv"], "to must be one of videoseek, sharegpt, verl, got 'csv'"),
        ([SOURCES[0], "out=x.jsonl", "from=trl"], "unknown key 'from'"),
        ([SOURCES[0], "out=x.jsonl", "video_prefixes=[a]"], "video_prefixes wants rules such as"),
    ],
)
def test_wrong_usage(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert(*arguments) == 2
    assert message in capsys.readouterr().err


def test_missing_file_and_help(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert(tmp_path / "none.jsonl", f"out={tmp_path}/x.jsonl") == 2
    assert "none.jsonl' does not exist" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        convert("--help")
    assert ConvertSettings.usage in capsys.readouterr().out

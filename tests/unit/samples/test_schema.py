from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from videoseek.samples.schema import (
    SCHEMA_VERSION,
    DataError,
    RecordError,
    confined,
    read_samples,
    sample_from_record,
    sample_to_record,
    write_samples,
)
from videoseek.types import KINDS, Sample

GOOD = {"id": "a", "video": "v.mp4", "question": "Where?", "answer": "B", "kind": "clue_single_w_tool"}

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
FILLED = TEXT.filter(str.strip)
SPANS = st.tuples(st.floats(0, 1e4), st.floats(0.01, 1e4)).map(lambda pair: (pair[0], pair[0] + pair[1]))


def lines(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    fields=st.lists(
        st.tuples(TEXT, FILLED, st.sampled_from(KINDS), st.lists(TEXT), st.lists(SPANS), st.lists(TEXT)), min_size=1
    ),
    window=st.none() | SPANS,
)
def test_reading_restores_samples(tmp_path: Path, fields: list[tuple], window: tuple[float, float] | None) -> None:
    samples = [
        Sample(
            id=f"s{index}",
            video=str(tmp_path.resolve() / f"videos/{index}.mp4"),
            question=question,
            answer=text,
            kind=kind,
            options=tuple(options),
            clues=tuple(clues),
            turns=tuple(turns),
            window=window,
        )
        for index, (question, text, kind, options, clues, turns) in enumerate(fields)
    ]
    write_samples(tmp_path / "s.jsonl", samples)
    assert read_samples(tmp_path / "s.jsonl") == samples
    assert [path.name for path in tmp_path.iterdir()] == ["s.jsonl"]


def test_records_hold_what_is_filled_and_nothing_else() -> None:
    record = sample_to_record(Sample(**GOOD))
    assert record == {"version": SCHEMA_VERSION, **GOOD}


def test_videos_are_written_relative_inside_and_absolute_outside(tmp_path: Path) -> None:
    inside, outside = tmp_path / "data/videos/a.mp4", tmp_path / "elsewhere/b.mp4"
    samples = [Sample(**GOOD | {"id": path.stem, "video": str(path)}) for path in (inside, outside)]
    write_samples(tmp_path / "data/s.jsonl", samples)
    written = [json.loads(line)["video"] for line in (tmp_path / "data/s.jsonl").read_text().splitlines()]
    assert written == ["videos/a.mp4", str(outside)]
    assert [s.video for s in read_samples(tmp_path / "data/s.jsonl", tmp_path)][1] == str(outside)


def test_videos_named_from_the_working_folder_are_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_samples(Path("data/s.jsonl"), [Sample(**GOOD | {"video": "data/v.mp4"})])
    assert read_samples(Path("data/s.jsonl"))[0].video == str(tmp_path / "data/v.mp4")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    write_samples(path, [Sample(**GOOD)])
    before = path.read_bytes()

    def broken():
        yield Sample(**GOOD | {"id": "b"})
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        write_samples(path, broken())
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"answer": "  "}, "has no answer"),
        ({"answer": 2}, "'answer' must be a string, got 2"),
        ({"kind": "riddle"}, "kind 'riddle' of sample 'a' is not one of"),
        ({"video": None}, "'video' must be a string"),
        ({"clue": [[1, 2]]}, "unknown field 'clue'; known fields are"),
        ({"version": 99}, "'version' is 99; this release reads version 1"),
        ({"clues": [[4, 4]]}, r"clue of sample 'a' \[4.0, 4.0\] must satisfy"),
        ({"clues": [[8, 4]]}, r"\[8.0, 4.0\] must satisfy"),
        ({"clues": [[-1, 4]]}, r"\[-1.0, 4.0\] must satisfy"),
        ({"clues": [[1, 2, 3]]}, r"'clues' wants \[start, end\] in seconds"),
        ({"clues": [["1", 2]]}, r"'clues' wants \[start, end\] in seconds"),
        ({"clues": [[False, True]]}, r"'clues' wants \[start, end\] in seconds"),
        ({"clues": "1-2"}, "'clues' must be a list"),
        ({"clues": [[0, 10**400]]}, "too large"),
        ({"clues": [[0, float("nan")]]}, "must satisfy"),
        ({"options": ["x", 1]}, "'options' must be a list of strings"),
        ({"turns": "one"}, "'turns' must be a list"),
        ({"window": [3, 1]}, "window of sample 'a'"),
        ({"video": "../v.mp4"}, "lies outside video_root"),
        ({"video": "/etc/passwd"}, "lies outside video_root"),
        ({"video": "a\0b"}, "null"),
    ],
    ids=str,
)
def test_bad_record_is_named_with_its_line(tmp_path: Path, change: dict[str, object], said: str) -> None:
    path = lines(tmp_path / "s.jsonl", GOOD | {"id": "first"}, GOOD | change)
    with pytest.raises(DataError, match=rf"s\.jsonl, line 2: .*{said}"):
        read_samples(path)


@pytest.mark.parametrize("name", ["id", "video", "question", "answer", "kind"])
def test_missing_field_is_named(tmp_path: Path, name: str) -> None:
    path = lines(tmp_path / "s.jsonl", {key: value for key, value in GOOD.items() if key != name})
    with pytest.raises(DataError, match=f"line 1: field '{name}' must be a string, got None"):
        read_samples(path)


@pytest.mark.parametrize(
    "line", [b"{", b"[1, 2]", b'"text"', b"\xff\xfe\x00{}", b"[" * 100_000, b'{"id": "a"} {}'], ids=lambda raw: raw[:9]
)
def test_line_without_a_record_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "s.jsonl"
    path.write_bytes(b"\n" + json.dumps(GOOD).encode() + b"\n\n" + line + b"\n")
    with pytest.raises(DataError, match=r"s\.jsonl, line 4: "):
        read_samples(path)


def test_repeated_id_missing_file_and_empty_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 3: id 'a' is used twice"):
        read_samples(lines(tmp_path / "s.jsonl", GOOD, GOOD | {"id": "b"}, GOOD))
    with pytest.raises(DataError, match="'.*none.jsonl' does not exist"):
        read_samples(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="holds no samples"):
        read_samples(lines(tmp_path / "empty.jsonl"))


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="from 3.13 on such a link is a name like any other")
def test_a_link_to_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(RecordError, match="'loop' is no path"):
        confined("loop", tmp_path)


def test_videos_cannot_leave_their_root_by_links_or_steps(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (tmp_path / "root-of-another").mkdir()
    (root / "link").symlink_to(tmp_path / "root-of-another")
    (root / "inner").symlink_to(root / "sub")
    for video in ("link/v.mp4", "sub/../../v.mp4", "../root-of-another/v.mp4", str(tmp_path / "v.mp4")):
        with pytest.raises(ValueError, match="lies outside video_root"):
            confined(video, root)
    assert confined("sub/../v.mp4", root) == root.resolve() / "v.mp4"
    assert confined("inner/v.mp4", root) == root.resolve() / "sub/v.mp4"
    assert confined(str(root / "v.mp4"), root) == root.resolve() / "v.mp4"


def test_video_root_replaces_the_files_own_folder(tmp_path: Path) -> None:
    path = lines(tmp_path / "s.jsonl", GOOD)
    assert read_samples(path)[0].video == str(tmp_path.resolve() / "v.mp4")
    assert read_samples(path, tmp_path / "films")[0].video == str(tmp_path.resolve() / "films/v.mp4")


def test_record_must_be_an_object() -> None:
    with pytest.raises(ValueError, match="must be a JSON object, got list"):
        sample_from_record([], str)


SCHEMA = json.loads((Path(__file__).parents[3] / "data/schema/sample.schema.json").read_text())
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.floats(allow_nan=False, allow_infinity=False),
    TEXT,
    st.sampled_from(KINDS),
    st.lists(TEXT | st.integers(0, 3), max_size=2),
    st.lists(st.lists(st.integers(-1, 9) | st.floats(0, 9) | st.booleans(), max_size=3), max_size=2),
    st.lists(st.integers(-1, 9) | TEXT, min_size=2, max_size=2),
)


def in_order(record: object) -> bool:
    """Whether every interval starts before it ends: the one rule within a record that JSON Schema cannot say."""
    fields = record if isinstance(record, dict) else {}
    pairs = [*(fields.get("clues") or []), fields.get("window") or [0, 1]]
    return all(start < end for start, end in pairs)


@settings(deadline=None, max_examples=2000 if os.environ.get("VIDEOSEEK_FULL") == "1" else 150)
@given(
    kept=st.sets(st.sampled_from(sorted(GOOD)), min_size=4),
    changes=st.dictionaries(st.sampled_from([*SCHEMA["properties"], "more"]), VALUES, max_size=2),
)
def test_the_json_schema_and_the_reader_agree(kept: set[str], changes: dict[str, object]) -> None:
    record = {name: value for name, value in GOOD.items() if name in kept} | changes
    valid = Draft202012Validator(SCHEMA).is_valid(record)
    try:
        sample_from_record(record, str)
        read = True
    except RecordError:
        read = False
    assert read == (valid and in_order(record))


def test_the_json_schema_knows_fields_kinds_and_version() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["properties"]["kind"]["enum"] == list(KINDS)
    assert SCHEMA["properties"]["version"]["const"] == SCHEMA_VERSION
    filled = Sample(**GOOD, options=("x",), clues=((1.0, 2.0),), turns=("t",), window=(0.0, 1.0))
    assert set(sample_to_record(filled)) == set(SCHEMA["properties"])
    Draft202012Validator(SCHEMA).validate(sample_to_record(filled))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"answer": "  "}, "no_answer"),
        ({"answer": 2}, "wrong_type"),
        ({"kind": "riddle"}, "bad_kind"),
        ({"clue": []}, "unknown_field"),
        ({"version": True}, "wrong_type"),
        ({"clues": [[4, 4]]}, "bad_interval"),
        ({"clues": [[0, 10**400]]}, "bad_interval"),
        ({"window": [3, 1]}, "bad_interval"),
        ({"options": [1]}, "wrong_type"),
        ({"video": "../v.mp4"}, "outside_root"),
        ({"video": "a\0b"}, "wrong_type"),
        ({"video": "x" * 5000 + "#fps=4"}, "wrong_type"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_every_fault_has_its_code(change: dict[str, object], code: str, tmp_path: Path) -> None:
    with pytest.raises(RecordError) as caught:
        sample_from_record(GOOD | change, lambda video: str(confined(video, tmp_path)))
    assert caught.value.code == code

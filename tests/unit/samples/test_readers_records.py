"""Raw records by offset, and readers that survive whatever a record holds."""

from __future__ import annotations

import builtins
import json
import os
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from videoseek.samples import schema
from videoseek.samples.readers import FORMATS, Reader, open_records
from videoseek.samples.readers import records as text_records
from videoseek.samples.readers.parquet import ParquetRows
from videoseek.samples.readers.records import JsonLines, JsonList, RecordFile
from videoseek.samples.readers.rows import VideoPaths
from videoseek.samples.schema import DataError, RecordError

SAMPLES = Path(__file__).parents[3] / "data/samples"
#: More with VIDEOSEEK_FULL=1.
EXAMPLES = 3000 if os.environ.get("VIDEOSEEK_FULL") == "1" else 60
FILES = settings(deadline=None, max_examples=EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture])

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def values(records: RecordFile) -> list[Any]:
    """Returns what iteration gives, after access to each offset in reverse order."""
    raw = list(records)
    for record in reversed(raw):
        if not isinstance(record.value, RecordError):
            assert records.at(record.offset) == record.value
    return [record.value for record in raw]


@FILES
@given(written=st.lists(JSON, max_size=6), indent=st.sampled_from([None, 1]), ascii_only=st.booleans())
def test_a_list_and_lines_give_every_value(
    written: list[Any], indent: int | None, ascii_only: bool, tmp_path: Path
) -> None:
    path = tmp_path / "list.json"
    path.write_text(json.dumps(written, indent=indent, ensure_ascii=ascii_only), encoding="utf-8")
    assert values(JsonList(path)) == written
    lines = tmp_path / "lines.jsonl"
    lines.write_text("".join(json.dumps(value) + "\n" for value in written))
    assert values(JsonLines(lines)) == written


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"[]", []),
        (b" \n [ ]\n", []),
        (b"[1]", [1]),
        (b'[1, "a,]b", {"c": ["]", "\\"]"]}]', [1, "a,]b", {"c": ["]", '"]']}]),
        (b'[{"a": 1} {"b": 2}, 3]', [RecordError, 3]),
        (b"[1,, 2]", [1, 2]),
        (b"[{'a': 1}, 2]", [RecordError, 2]),
        (b'[1, {"a": 2', [1, RecordError]),
        (b'[1, "torn', [1, RecordError]),
        (b"[" * 3000, [RecordError]),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_broken_elements_of_a_list_are_one_record_each(text: bytes, expected: list[Any], tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_bytes(text)
    got = values(open_records(path))
    assert [RecordError if isinstance(value, RecordError) else value for value in got] == expected


def test_beginning_of_a_file_tells_its_form(tmp_path: Path) -> None:
    for text, kind, found in ((b"\xef\xbb\xbf \n[1]", JsonList, [1]), (b'{"a": 1}\n\n{"b": 2}', JsonLines, 2)):
        path = tmp_path / "file.json"
        path.write_bytes(text)
        records = open_records(path)
        assert type(records) is kind and values(records) == (found if kind is JsonList else [{"a": 1}, {"b": 2}])
    path.write_bytes(b"")
    assert values(open_records(path)) == []
    (tmp_path / "noise.parquet").write_bytes(b"noise" * 100)
    with pytest.raises(DataError, match=r"noise\.parquet cannot be read as Parquet"):
        open_records(tmp_path / "noise.parquet")
    with pytest.raises(DataError, match="does not exist"):
        open_records(tmp_path / "none.parquet")


def test_rows_of_many_row_groups_are_read(tmp_path: Path) -> None:
    rows = [{"number": number, "texts": ["x"] * (number % 3), "inner": {"a": number}} for number in range(2500)]
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=700)
    records = ParquetRows(path)
    assert records.size == 2500 and values(records) == rows
    assert [record.number for record in records][:2] == [1, 2]
    damaged = bytearray(path.read_bytes())
    damaged[200:4000] = b"\xff" * 3800
    path.write_bytes(damaged)
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        list(ParquetRows(path))


def test_parquet_without_its_library_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows.parquet").write_bytes(b"PAR1")
    real = builtins.__import__

    def without_pyarrow(name: str, *rest: Any) -> Any:
        if name.split(".")[0] == "pyarrow":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_pyarrow)
    with pytest.raises(DataError, match=r"needs pyarrow to be read; pip install 'videoseek\[data\]'"):
        open_records(tmp_path / "rows.parquet")


def test_reading_does_not_import_pyarrow() -> None:
    source = "import sys, videoseek.samples.sources; sys.exit('pyarrow' in sys.modules)"
    assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", source]) == 0


def _sample_records() -> list[tuple[str, dict[str, Any]]]:
    paths = VideoPaths()
    found = []
    for path in sorted(SAMPLES.iterdir()):
        if path.suffix in (".json", ".jsonl", ".parquet") and path.name != "dataset_info.json":
            reader = Reader(path, None, paths)
            found += [(reader.format, record.value) for record in reader.records]
    return found


RECORDS = _sample_records()


@st.composite
def damaged(draw: st.DrawFn) -> tuple[str, Any]:
    """A good record of some format with one to three of its values, at any depth, replaced or taken out."""
    fmt, record = draw(st.sampled_from(RECORDS))
    record = json.loads(json.dumps(record))
    for _ in range(draw(st.integers(1, 3))):
        node: Any = record
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(node[key], (dict, list)) and node[key] and draw(st.booleans()):
                node = node[key]
                continue
            if draw(st.booleans()):
                del node[key]
            else:
                node[key] = draw(JSON)
            break
    return fmt, record


@FILES
@given(case=damaged() | st.tuples(st.sampled_from(list(FORMATS)), JSON))
def test_readers_handle_any_record(case: tuple[str, Any], tmp_path: Path) -> None:
    fmt, record = case
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps(record) + "\n" + json.dumps({"id": "other"}) + "\n")
    rows = list(Reader(path, fmt, VideoPaths()).rows(set()))
    assert len(rows) == 2
    for row in rows:
        assert (row.sample is None) != (row.problem is None)
        assert row.problem is None or (row.problem.code and row.problem.message)


def test_a_text_beyond_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (schema, text_records):
        monkeypatch.setattr(module, "MAX_TEXT_CHARACTERS", 50)
    good = {"id": "a", "video": "v.mp4", "question": "Q" * 50, "answer": "B", "kind": "perception"}
    records = [good, good | {"id": "b", "question": "Q" * 51}, good | {"id": "c", "turns": ["ok", "t" * 99]}]
    records.append(good | {"id": "d", "k" * 51: ""})
    lines, table = tmp_path / "r.jsonl", tmp_path / "r.parquet"
    lines.write_text("".join(json.dumps(record) + "\n" for record in records))
    parquet.write_table(pyarrow.Table.from_pylist(records[:2]), table)
    (tmp_path / "r.json").write_text(json.dumps(records))
    for path in (lines, tmp_path / "r.json", table):
        reader = Reader(path, "videoseek", VideoPaths())
        first, *others = reader.rows(set())
        assert first.sample is not None and reader.sample(first.offset, 1) == first.sample
        assert {row.problem.code for row in others if row.problem is not None} == {"too_long_text"}
        assert others[0].problem is not None
        assert others[0].problem.message == f"a text that begins {'Q' * 40!r} has 51 characters; at most 50 are read"


def test_a_list_in_a_file_of_lines_gets_a_hint(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    hint = "; the file begins a JSON list, which is read from a file that ends in .json"
    for indent in (None, 1):
        path.write_text(json.dumps([{"id": "a"}, {"id": "b"}], indent=indent))
        with pytest.raises(DataError, match=f"line 1: .*{hint}"):
            Reader(path, None, VideoPaths())
        first, *others = Reader(path, "videoseek", VideoPaths()).rows(set())
        assert first.problem is not None and first.problem.message.endswith(hint)
        assert not [row for row in others if row.problem is not None and hint in row.problem.message]
    path.write_text('{"id": "a"}\n[1]\n')
    rows = Reader(path, "trl", VideoPaths()).rows(set())
    assert not [row for row in rows if row.problem is not None and hint in row.problem.message]


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "c"),
        (b'[{"a": 1}, {"a": 1, "b": 2, "a": 3}]', "a"),
        (b'{"a": 1, "b": {"a": 2}}', None),
        (b'{"a": 1, "a"', None),
        (b"\xff", None),
    ],
)
def test_repeated_keys_are_found(text: bytes, key: str | None) -> None:
    assert schema.repeated_key(text) == key

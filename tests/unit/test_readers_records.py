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

from videoseek.samples.readers import FORMATS, Reader, open_records
from videoseek.samples.readers.parquet import ParquetRows
from videoseek.samples.readers.records import JsonLines, JsonList, RecordFile
from videoseek.samples.readers.rows import VideoPaths
from videoseek.samples.schema import DataError, RecordError

SAMPLES = Path(__file__).parents[2] / "data/samples"
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


def test_kind_of_file_by_its_beginning(tmp_path: Path) -> None:
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


def test_rows_of_many_row_groups(tmp_path: Path) -> None:
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
def test_no_record_breaks_a_reader(case: tuple[str, Any], tmp_path: Path) -> None:
    fmt, record = case
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps(record) + "\n" + json.dumps({"id": "other"}) + "\n")
    rows = list(Reader(path, fmt, VideoPaths()).rows(set()))
    assert len(rows) == 2
    for row in rows:
        assert (row.sample is None) != (row.problem is None)
        assert row.problem is None or (row.problem.code and row.problem.message)

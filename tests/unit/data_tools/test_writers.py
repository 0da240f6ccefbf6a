"""Written and read again: the same samples, in every format."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from videoseek.config import UsageError
from videoseek.data_tools.writers import WRITERS, conversation_record
from videoseek.samples.readers import Reader, detect_format
from videoseek.samples.readers.calls import STORED_FORMS
from videoseek.samples.readers.rows import VideoPaths
from videoseek.samples.schema import DataError
from videoseek.trajectory.formats import FORMATS
from videoseek.types import KINDS, STRATEGIES, Call, Sample

SAMPLES = Path(__file__).parents[3] / "data/samples"
SAMPLE_FILES = sorted(p for p in SAMPLES.iterdir() if p.suffix in (".json", ".jsonl", ".parquet"))
SAMPLE_FILES = [path for path in SAMPLE_FILES if path.name != "dataset_info.json"]
PATHS = VideoPaths.of(None, ["__VIDEO_ROOT__/=>"])
ANYWHERE = VideoPaths(Path("/"))
#: More with VIDEOSEEK_FULL=1.
EXAMPLES = 2000 if os.environ.get("VIDEOSEEK_FULL") == "1" else 60
NAMES = {"videoseek": "out.jsonl", "sharegpt": "out.json", "verl": "out.parquet"}

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(lambda text: "<" not in text)
FILLED = TEXT.filter(str.strip)
SPANS = st.tuples(st.floats(0, 1e4), st.floats(0.2, 1e4)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@st.composite
def turns(draw: st.DrawFn) -> tuple[str, ...]:
    """A trajectory in one of the call forms: calls, several at once, malformed and reversed ones; or plain text."""
    if draw(st.booleans()):
        return tuple(draw(st.lists(TEXT, max_size=3)))
    fmt = FORMATS[draw(st.sampled_from(STORED_FORMS))]()
    texts = []
    for _ in range(draw(st.integers(0, 3))):
        calls = [Call(*draw(SPANS), draw(st.sampled_from(STRATEGIES))) for _ in range(draw(st.integers(1, 3)))]
        looks = [fmt.render_turn(draw(TEXT), call, None) for call in calls if call.end_seconds - call.start_seconds > 1]
        texts.append("\n".join(looks if fmt.several_calls else looks[:1]))
        if draw(st.booleans()):
            texts.append(f"<think>{draw(TEXT)}</think>\n<{fmt.call_tag}>{draw(TEXT)}</{fmt.call_tag}>")
    return (*texts, fmt.render_turn(draw(TEXT), None, draw(FILLED)))


@st.composite
def samples(draw: st.DrawFn) -> list[Sample]:
    return [
        Sample(
            id=f"s{index}",
            video=f"/videos/{draw(st.integers(0, 9))}.mp4",
            question=draw(TEXT),
            answer=draw(FILLED),
            kind=draw(st.sampled_from(KINDS)),
            options=tuple(draw(st.lists(TEXT, max_size=4))),
            clues=tuple(draw(st.lists(SPANS, max_size=2))),
            turns=draw(turns()),
            window=draw(st.none() | SPANS),
        )
        for index in range(draw(st.integers(1, 3)))
    ]


def read(path: Path, fmt: str | None, paths: VideoPaths) -> list[Sample]:
    rows = list(Reader(path, fmt, paths).rows(set()))
    assert [row.problem for row in rows] == [None] * len(rows)
    return [row.sample for row in rows if row.sample is not None]


@pytest.mark.parametrize("name", WRITERS)
@settings(deadline=None, max_examples=EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(written=samples())
def test_writing_and_reading_restores_any_samples(name: str, written: list[Sample], tmp_path: Path) -> None:
    path = tmp_path / NAMES[name]
    WRITERS[name].write(path, written)
    assert read(path, name, ANYWHERE) == written
    assert not list(tmp_path.glob("*partial*"))


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("source", SAMPLE_FILES, ids=lambda path: path.name)
def test_every_format_restores_the_read_samples(source: Path, name: str, tmp_path: Path) -> None:
    """Reader, canonical, writer, reader: the format of what was written is told from the file alone."""
    canonical = tmp_path / "canonical.jsonl"
    WRITERS["videoseek"].write(canonical, read(source, None, PATHS))
    path = tmp_path / NAMES[name]
    WRITERS[name].write(path, read(canonical, None, ANYWHERE))
    assert detect_format(path) == name
    assert read(path, None, ANYWHERE) == read(source, None, PATHS)


def look(window: tuple[float, float], fmt: str = "grounding") -> str:
    return FORMATS[fmt]().render_turn("look", Call(*window, "fine"), None)


def sample(**changes: Any) -> Sample:
    values = {"id": "a", "video": "/v/a.mp4", "question": "Q?", "answer": "B", "kind": "clue_single_w_tool"}
    return Sample(**values | {"options": ("x", "y")} | changes)


def test_a_trajectory_is_written_as_the_public_trainer_reads_it() -> None:
    end = "<think>seen</think>\n<answer>B</answer>"
    faulty = "<think>hm</think>\n<grounding>soon</grounding>"
    record = conversation_record(sample(turns=(look((2, 5)), faulty, end)), Path("/v"))
    assert [message["role"] for message in record["messages"]] == ["user", "assistant"] * 3
    asked, shown, failed = (message["content"] for message in record["messages"][::2])
    assert asked.startswith("<video>\nQuestion: Q?\nOptions:\nA. x\nB. y")
    assert shown.count("<video>") == 1 and shown.startswith("Observation 1")
    assert failed.startswith("No clip was made. The call must hold one JSON object.")
    assert record["videos"] == [
        {"url": "a.mp4", "crop": [-1.0, -1.0], "sample": None},
        {"url": "a.mp4", "crop": [2.0, 5.0], "sample": "fine"},
    ]
    several = look((1, 2), "hermes") + look((3, 4), "hermes").removeprefix("<think>look</think>")
    record = conversation_record(sample(turns=(several, end)), Path("/v"))
    assert record["messages"][2]["content"].count("<video>") == 2 and len(record["videos"]) == 3
    unanswered = conversation_record(sample(turns=(look((2, 5)),)), Path("/v"))
    assert len(unanswered["videos"]) == 1, "nothing is shown after the last turn"


def test_the_entry_in_dataset_info_is_added_and_replaced(tmp_path: Path) -> None:
    info = tmp_path / "dataset_info.json"
    info.write_text('{"theirs": {"file_name": "theirs.json"}}')
    for _ in range(2):
        WRITERS["sharegpt"].write(tmp_path / "ours.json", [sample()])
    entries = json.loads(info.read_text())
    assert list(entries) == ["theirs", "ours"] and entries["ours"]["formatting"] == "sharegpt"
    (record,) = json.loads((tmp_path / "ours.json").read_text())
    assert set(entries["ours"]["columns"].values()) <= set(record)
    with pytest.raises(DataError, match="has an entry 'theirs' for another file"):
        WRITERS["sharegpt"].write(tmp_path / "theirs.jsonl", [sample()])
    WRITERS["sharegpt"].write(tmp_path / "lines.jsonl", [sample(), sample(id="b")])
    assert [json.loads(line)["id"] for line in (tmp_path / "lines.jsonl").read_text().splitlines()] == ["a", "b"]


def test_verl_records_have_verls_columns(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    many = [sample(id=f"s{index}", clues=((1.0, 2.0),)) for index in range(1500)]
    WRITERS["verl"].write(path, many)
    file = parquet.ParquetFile(path)
    assert file.metadata.num_row_groups == 2
    row = file.read_row_group(1).to_pylist()[-1]
    assert row["data_source"] == "clue_single_w_tool" and row["reward_model"] == {"style": "rule", "ground_truth": "B"}
    assert [message["role"] for message in row["prompt"]] == ["system", "user"]
    assert row["prompt"][1]["content"].count("<video>") == len(row["videos"]) == 1
    assert (row["extra_info"]["index"], row["extra_info"]["video_segment"]) == (1499, [[1.0, 2.0]])
    assert read(path, None, ANYWHERE) == many


@pytest.mark.parametrize("name", ["sharegpt", "verl"])
def test_texts_that_cannot_stand_in_a_conversation_are_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / NAMES[name]
    WRITERS[name].write(path, [sample()])
    before = path.read_bytes()
    mixed = (look((1, 2)), look((1, 2), "hermes"), "<answer>B</answer>")
    for broken, said in ((sample(question="a <video>?"), "holds the mark <video>"), (sample(turns=mixed), "mix the")):
        with pytest.raises(DataError, match=f"sample 'a'.*{said}"):
            WRITERS[name].write(path, [sample(id="good"), broken])
    assert path.read_bytes() == before and not list(tmp_path.glob("*partial*"))


def test_writers_demand_the_endings_of_the_readers() -> None:
    for name, file in NAMES.items():
        WRITERS[name].check_name(Path(file))
        with pytest.raises(UsageError, match="a file of this format ends in"):
            WRITERS[name].check_name(Path("out.txt"))

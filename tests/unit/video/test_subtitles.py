from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from support.benchmarks import SRT

from videoseek.video.subtitles import (
    Line,
    SubtitleError,
    covering_frames,
    inside,
    parse_time,
    read_subtitles,
    shifted,
)


def test_subrip_with_and_without_markup(tmp_path: Path) -> None:
    path = tmp_path / "film.srt"
    expected = [Line(0.5, 2.0, "first & only"), Line(5.0, 5.4, "a short line"), Line(9.0, 11.0, "no font in two lines")]
    for text in (SRT, "\ufeff" + SRT.replace("\n", "\r\n"), SRT.replace("1\n00:00:00", "00:00:00"), SRT + "\n\n7\n\n"):
        path.write_text(text)
        assert read_subtitles(path) == expected


def test_lines_are_sorted_and_empty_ones_left_out(tmp_path: Path) -> None:
    path = tmp_path / "film.srt"
    path.write_text(
        "2\n00:00:04,000 --> 00:00:05,000\nlater\n\n1\n00:00:01,000 --> 00:00:02,000\n{\\an8}sooner\n\n"
        "3\n00:00:06,000 --> 00:00:07,000\n<b></b>\n"
    )
    assert read_subtitles(path) == [Line(1.0, 2.0, "sooner"), Line(4.0, 5.0, "later")]


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("a.json", [{"timestamp": [1.0, 2.5], "text": "hi"}, {"timestamp": [4, None], "text": "open"}]),
        ("b.json", [{"start": "00:00:01.0", "end": "00:00:02.5", "line": "hi"}]),
        ("c.jsonl", [{"start_time": 1.0, "end_time": 2.5, "text": "hi"}]),
    ],
)
def test_json_forms(tmp_path: Path, name: str, rows: list[dict[str, object]]) -> None:
    path = tmp_path / name
    path.write_text(json.dumps(rows) if name.endswith("json") else "".join(json.dumps(row) + "\n" for row in rows))
    lines = read_subtitles(path)
    assert lines[0] == Line(1.0, 2.5, "hi")
    assert lines[1:] == ([Line(4.0, math.inf, "open")] if name == "a.json" else [])


@pytest.mark.parametrize("text", ["no times here", "1\n00:00 --> later\nx", "[1]", '{"a": 1}'])
@pytest.mark.parametrize("suffix", [".srt", ".json", ".jsonl"])
def test_other_files_are_refused_by_name(tmp_path: Path, text: str, suffix: str) -> None:
    path = tmp_path / f"film{suffix}"
    path.write_text(text)
    with pytest.raises(SubtitleError, match=f"film{suffix} cannot be read"):
        read_subtitles(path)
    with pytest.raises(SubtitleError, match="gone.srt cannot be read"):
        read_subtitles(tmp_path / "gone.srt")


def test_choice_of_lines() -> None:
    lines = [Line(0.5, 2.0, "a"), Line(5.0, 5.4, "b"), Line(9.0, math.inf, "c")]
    assert [line.text for line in covering_frames(lines, [0.0, 2.0, 5.6, 20.0])] == ["c"]
    assert [line.text for line in covering_frames(lines, [0.5, 5.2])] == ["a", "b"]
    assert [line.text for line in covering_frames(lines, [5.6], least_seconds=1.0)] == ["b"], "widened to 4.7 to 5.7 s"
    assert [line.text for line in inside(lines, (2.0, 5.1))] == ["b"]
    assert shifted(lines, -5)[1] == Line(0.0, pytest.approx(0.4), "b")
    assert (parse_time("1:02:03,5"), parse_time("02:03")) == (3723.5, 123.0)


def test_words_become_lines(tmp_path: Path) -> None:
    """Thirteen words half a second apart, and one after a pause, with a line separator of Unicode."""
    words = [{"text": f"w{index}", "start_time": index / 2, "end_time": index / 2 + 0.4} for index in range(13)]
    words.append({"text": "\u2028late", "start_time": 20.0, "end_time": 20.5})
    path = tmp_path / "film.jsonl"
    path.write_text("".join(json.dumps(word, ensure_ascii=False) + "\n" for word in words))
    first = " ".join(f"w{index}" for index in range(12))
    assert read_subtitles(path) == [Line(0.0, 5.9, first), Line(6.0, 6.4, "w12"), Line(20.0, 20.5, "late")]

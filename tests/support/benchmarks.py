"""The benchmarks in their released layouts: a few questions each about small generated films.

Every set has a film that is missing and an answer key that names no option.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet
from support.video_samples import steady, write_video, x264

#: All films are alike: 12 seconds at 4 frames per second.
FILM_SECONDS = 12
FOUR = ["red", "green", "blue", "black"]
SRT = """1
00:00:00,500 --> 00:00:02,000
<font color="white" size=".72c">first &amp; only</font>

2
00:00:05,000 --> 00:00:05,400
a short line

3
00:00:09,000 --> 00:00:11,000
<i>no</i> font
in two lines
"""


class Films:
    """Puts films at paths: one film is encoded, and all others are links to it."""

    def __init__(self, folder: Path) -> None:
        self.film = write_video(folder / "film.mp4", steady(FILM_SECONDS * 4, 4), options=x264(8))

    def put(self, *paths: Path) -> None:
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                os.link(self.film, path)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes rows in the form that the suffix names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text(json.dumps(rows))


def lettered(options: list[str]) -> list[str]:
    return [f"{chr(65 + index)}. {option}" for index, option in enumerate(options)]


def videomme(root: Path, films: Films, *, file: str = "videomme/test-00000-of-00001.parquet") -> None:
    """Six questions on a film of each duration, a missing film, a broken key, and a question with five options."""
    folder = root / "Video-MME"
    rows = []
    for number, duration in enumerate(("short", "medium", "long"), 1):
        film = f"yt{duration}"
        films.put(folder / f"data/{film}.mp4")
        for index in (1, 2):
            row = {"video_id": f"{number:03}", "duration": duration, "domain": "Knowledge"}
            row |= {"sub_category": "Humanity & History", "url": "https://example.org", "videoID": film}
            row |= {"question_id": f"{number:03}-{index}", "task_type": "Counting Problem"}
            options = [*FOUR, "white"] if (number, index) == (3, 2) else FOUR
            row |= {"question": f"Which colour is card {index}?", "options": lettered(options)}
            rows.append(row | {"answer": "E" if len(options) == 5 else "B"})
    rows.append(rows[0] | {"question_id": "004-1", "videoID": "gone"})
    rows.append(rows[0] | {"question_id": "005-1", "answer": "E"})
    write_rows(folder / file, rows)
    (folder / "subtitle").mkdir()
    (folder / "subtitle/ytshort.srt").write_text(SRT)


def videomme_v2(root: Path, films: Films) -> None:
    """Three groups of four questions: relevance, a chain, and a chain with a pair in the middle."""
    folder = root / "Video-MME-v2"
    options = "\n".join(lettered([f"answer {index}" for index in range(8)]))
    structures = {"001": ("relevance", "None"), "002": ("logic", "[1, 2, 3, 4]"), "003": ("logic", "[1, [2, 3], 4]")}
    rows = []
    for film, (kind, structure) in structures.items():
        films.put(folder / f"video/{film}.mp4")
        for index in range(1, 5):
            row = {"video_id": film, "url": "", "group_type": kind, "group_structure": structure}
            row |= {"question_id": f"{film}-{index}", "question": "Which?", "options": options, "answer": "H"}
            rows.append(row | {"level": "2" if index == 4 else None, "second_head": None, "third_head": None})
    rows.append(rows[0] | {"question_id": "004-1", "video_id": "004"})
    rows.append(rows[0] | {"question_id": "001-5", "answer": "I"})
    write_rows(folder / "test.parquet", rows)
    write_rows(
        folder / "subtitle/001.jsonl",
        [{"text": "hello", "start_time": 0.0, "end_time": 0.4}, {"text": "there", "start_time": 0.4, "end_time": 1.0}],
    )


def mlvu_json(root: Path, films: Films) -> None:
    """Two tasks of unequal size: `answer` is the text of a candidate. One open task, which nobody asks."""
    folder = root / "MLVU/MLVU"
    for task, count in (("1_plotQA", 4), ("4_count", 2)):
        kind = task[2:]
        films.put(folder / f"video/{task}/{kind}_1.mp4")
        row = {"video": f"{kind}_1.mp4", "duration": 12.0, "candidates": FOUR, "question_type": kind}
        rows = [row | {"question": f"Which colour, {index}?", "answer": "green"} for index in range(count)]
        if kind == "plotQA":
            rows += [rows[0] | {"video": "gone.mp4"}, rows[0] | {"answer": "purple"}]
        write_rows(folder / f"json/{task}.json", rows)
    write_rows(folder / "json/9_summary.json", [{"video": "plotQA_1.mp4", "question": "Tell.", "answer": "A film."}])


def mlvu_flat(root: Path, films: Films) -> None:
    """The same questions as a table: options inside the question, `answer` is a letter, one with six options."""
    folder = root / "MLVU_dev"
    films.put(folder / "video/plotQA_1.mp4", folder / "video/count_1.mp4")
    rows = []
    for kind, count in (("plotQA", 4), ("count", 2)):
        for index in range(count):
            options = [*FOUR, "white", "grey"] if (kind, index) == ("count", 1) else FOUR
            inside = "\n".join(f"({chr(65 + place)}) {option}" for place, option in enumerate(options))
            row = {"video_name": f"{kind}_1.mp4", "task_type": kind, "candidates": options}
            rows.append(row | {"question": f"Which colour, {index}?\n{inside}", "answer": "B"})
    rows += [rows[0] | {"video_name": "gone.mp4"}, rows[0] | {"answer": "E"}]
    write_rows(folder / "data.parquet", rows)


def lvbench_questions() -> list[dict[str, Any]]:
    inside = "\n".join(f"({chr(65 + index)}) {option}" for index, option in enumerate(FOUR))
    base = {"question": f"Which colour?\n{inside}", "answer": "B"}
    kinds = [["entity recognition"], ["entity recognition", "reasoning"], ["summarization"]]
    times = ["00:04-00:08", "00:00:02-00:00:04", "whole film"]
    listed = zip(kinds, times, strict=True)
    return [
        base | {"uid": str(uid), "question_type": kind, "time_reference": time}
        for uid, (kind, time) in enumerate(listed)
    ]


def lvbench_meta(root: Path, films: Films) -> None:
    folder = root / "LVBench"
    films.put(folder / "videos/keyA.mp4", folder / "videos/keyB.mp4")
    info = {"fps": 4.0, "duration_minutes": 0.2, "resolution": "112x64"}
    records = []
    for key in ("keyA", "keyB", "keyGone"):
        listed = [row | {"uid": f"{key}{row['uid']}"} for row in lvbench_questions()]
        listed += [listed[0] | {"uid": "broken", "answer": "F"}] if key == "keyB" else []
        records.append({"key": key, "type": "cartoon", "video_info": info, "qa": listed})
    write_rows(folder / "video_info.meta.jsonl", records)


def lvbench_flat(root: Path, films: Films) -> None:
    folder = root / "LVBench"
    films.put(folder / "keyA.mp4", folder / "keyB.mp4")
    rows = []
    for key in ("keyA", "keyB", "keyGone"):
        for row in lvbench_questions():
            rows.append(row | {"uid": f"{key}{row['uid']}", "key": key, "video_path": f"{key}.mp4", "type": "cartoon"})
    rows.append(rows[3] | {"uid": "broken", "answer": "F"})
    write_rows(folder / "data/train-00000-of-00001.parquet", rows)


def longvideobench_rows() -> list[dict[str, Any]]:
    rows = []
    for index, group in enumerate((15, 15, 60, 600, 3600, 3600)):
        name = f"film{index}"
        row: dict[str, Any] = {"video_id": name, "id": f"{name}_0", "video_path": f"{name}.mp4"}
        row |= {
            "subtitle_path": f"{name}_en.json",
            "question": "Which colour?",
            "question_wo_referring_query": "Which?",
        }
        row |= {"candidates": [*FOUR, "white"] if index == 4 else FOUR[: 2 + index % 3], "correct_choice": 1}
        row |= {"duration": 12.0, "duration_group": group, "starting_timestamp_for_subtitles": 100.0}
        row |= {
            "question_category": "S2E",
            "topic_category": "KH",
            "level": "L1",
            "position": [16, 20],
            "view_count": 9,
        }
        rows.append(row)
    rows.append(rows[0] | {"id": "gone_0", "video_path": "gone.mp4"})
    rows.append(rows[0] | {"id": "broken_0", "correct_choice": 4})
    return rows


def longvideobench(root: Path, films: Films, *, table: bool = False) -> None:
    """`table` writes option0 to option4 in place of the list of candidates."""
    folder = root / "LongVideoBench"
    films.put(*(folder / f"videos/film{index}.mp4" for index in range(6)))
    rows = longvideobench_rows()
    if table:
        for row in rows:
            options = [*row.pop("candidates"), "N/A", "N/A", "N/A"][:5]
            row |= {f"option{index}": option for index, option in enumerate(options)}
    write_rows(folder / ("validation-00000-of-00001.parquet" if table else "lvb_val.json"), rows)
    stamps = [{"timestamp": [101.0, 103.0], "text": "early"}, {"timestamp": [110.0, None], "text": "late"}]
    clocks = [{"start": "00:01:41.0", "end": "00:01:43.0", "line": "early"}]
    for index in range(2):
        path = folder / f"subtitles/film{index}_en.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(stamps if index == 0 else clocks))


def videommmu(root: Path, films: Films) -> None:
    """Three tracks on two films; Adaptation has an open question, and films of the picture alone."""
    folder = root / "VideoMMMU"
    names = ("dev_Art_Theory_1", "validation_Physics_2")
    films.put(folder / f"Art/{names[0]}.mp4", folder / f"Science/{names[1]}.mp4")
    films.put(*(folder / f"question_only/{name}_image.mp4" for name in names))
    for track in ("Perception", "Comprehension", "Adaptation"):
        options = [f"value {index}" for index in range(10)]
        row = {"question": "Which value?", "options": options, "answer": "J", "question_type": "multiple-choice"}
        rows = [{"id": name, **row} for name in names]
        if track == "Adaptation":
            rows[1] |= {"options": [], "answer": "42 J", "question_type": "open"}
        if track == "Perception":
            rows += [rows[0] | {"id": "dev_Art_Theory_9"}, rows[0] | {"id": "validation_Physics_2", "answer": "K"}]
        write_rows(folder / track / "test-00000-of-00001.parquet", rows)


def mmvu(root: Path, films: Films) -> None:
    folder = root / "MMVU"
    films.put(folder / "videos/Art/0.mp4", folder / "videos/Pharmacy/0.mp4")
    address = "https://huggingface.co/datasets/yale-nlp/MMVU/resolve/main/videos"
    rows = []
    for number, subject in enumerate(("Art", "Art", "Pharmacy", "Pharmacy")):
        row = {"id": f"validation_{number}", "video": f"{address}/{subject}/0.mp4", "question": "Which colour?"}
        row |= {"question_type": "multiple-choice", "choices": dict(zip("ABCDE", [*FOUR, "white"], strict=True))}
        rows.append(row | {"answer": "E", "metadata": {"subject": subject, "rationale": "because"}})
    for number in (4, 5):
        empty = dict.fromkeys("ABCDE", "")
        rows.append(
            rows[number - 3]
            | {"id": f"validation_{number}", "question_type": "open-ended", "choices": empty, "answer": "depth first"}
        )
    rows.append(rows[0] | {"id": "validation_6", "video": f"{address}/Art/7.mp4"})
    rows.append(rows[0] | {"id": "validation_7", "answer": "F"})
    write_rows(folder / "validation.json", rows)


def video_holmes(root: Path, films: Films) -> None:
    folder = root / "Video-Holmes"
    films.put(folder / "videos_cropped/v1.mp4", folder / "videos_cropped/v2.mp4")
    rows = []
    for number, kind in enumerate(("SR", "IMC", "TCI", "TA", "MHR", "PAR", "CTI")):
        options = dict(zip("ABCDEF", [*FOUR, "the man's hat", "grey"], strict=True))
        row = {"video ID": f"v{1 + number % 2}", "Question ID": f"q{number}", "Question Type": kind}
        rows.append(row | {"Question": "Who?", "Options": options, "Answer": "F", "Explanation": "so"})
    rows.append(rows[0] | {"Question ID": "gone", "video ID": "v9"})
    rows.append(rows[0] | {"Question ID": "broken", "Answer": "G"})
    write_rows(folder / "test_Video-Holmes.json", rows)


def videosiah(root: Path, films: Films) -> None:
    folder = root / "VideoSIAH-Eval"
    films.put(folder / "videos/a.mp4", folder / "videos/b.mp4")
    rows = [
        {"video_path": f"{film}.mp4", "question": f"What happens, {index}?", "answer": "A dog barks."}
        for film in "ab"
        for index in range(3)
    ]
    rows += [rows[0] | {"video_path": "gone.mp4"}, rows[0] | {"answer": ""}]
    write_rows(folder / "test-00000-of-00001.parquet", rows)


def charades(root: Path, films: Films) -> None:
    """Six queries, two of them alike, one timestamp as text; the last two are a missing film and a broken timestamp."""
    folder = root / "Charades-STA"
    films.put(folder / "Charades_v1_480/AAAAA.mp4", folder / "Charades_v1_480/BBBBB.mp4")
    stamps: list[Any] = [[2.0, 6.0], [2.0, 6.0], [0.0, 4.0], "[4.0, 8.0]", [1.0, 2.0], [6.0, 12.0]]
    rows = [
        {
            "video": "AAAAA.mp4" if index < 3 else "BBBBB.mp4",
            "caption": "a person opens a can",
            "timestamp": stamp,
        }
        for index, stamp in enumerate(stamps)
    ]
    rows += [rows[0] | {"video": "gone.mp4"}, rows[0] | {"timestamp": [6.0]}]
    write_rows(folder / "test.jsonl", rows)


#: Layout -> (task, writer, number of questions that can be asked).
LAYOUTS: dict[str, tuple[str, Callable[[Path, Films], None], int]] = {
    "videomme": ("videomme", videomme, 6),
    "videomme_v2": ("videomme_v2", videomme_v2, 12),
    "mlvu_json": ("mlvu", mlvu_json, 6),
    "mlvu_flat": ("mlvu", mlvu_flat, 6),
    "lvbench_meta": ("lvbench", lvbench_meta, 6),
    "lvbench_flat": ("lvbench", lvbench_flat, 6),
    "longvideobench_json": ("longvideobench", longvideobench, 6),
    "longvideobench_table": ("longvideobench", lambda root, films: longvideobench(root, films, table=True), 6),
    "videommmu": ("videommmu", videommmu, 6),
    "mmvu": ("mmvu", mmvu, 6),
    "video_holmes": ("video_holmes", video_holmes, 7),
    "videosiah": ("videosiah", videosiah, 6),
    "charades": ("charades", charades, 6),
}

"""LVBench (2406.08035): six overlapping categories, and the time of the evidence (`time_reference`).

Two layouts: `zai-org/LVBench` (video_info.meta.jsonl, one line a film with a list `qa`) and `lmms-lab/LVBench`
(one row a question). The options stand inside the question as `(A) ..`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from videoseek.evaluation.tasks.task import PromptStyle, Question, Row, Task, multiple_choice, split_options
from videoseek.types import Interval
from videoseek.video.subtitles import parse_time


def unfold(record: Any) -> Iterable[Any]:
    """Yields a row for each question of a film."""
    if isinstance(record, dict) and isinstance(record.get("qa"), list):
        return [{**record, **question} if isinstance(question, dict) else question for question in record["qa"]]
    return [record]


def read(row: Row) -> Question:
    question, options = split_options(row.text("question"))
    kinds = row.values.get("question_type") or []
    film = str(row.values.get("video_path") or row.text("key"))
    return multiple_choice(
        str(row.values.get("uid") or row.name),
        row.film(film, "", "videos", "video", "all_videos", "data"),
        question,
        row.values.get("options") or options,
        row.text("answer"),
        groups={
            "category": tuple(kinds) if not isinstance(kinds, str) else (kinds,),
            "film_type": (str(row.values.get("type")),),
        },
        clues=time_reference(str(row.values.get("time_reference") or "")),
    )


def time_reference(text: str) -> tuple[Interval, ...]:
    """Returns the window of `02:10-02:20`, in seconds, or () for a text without a window."""
    start, _, end = text.partition("-")
    try:
        window = parse_time(start), parse_time(end)
    except ValueError:
        return ()
    return (window,) if window[0] < window[1] else ()


TASK = Task(
    name="lvbench",
    citation="LVBench, arXiv 2406.08035",
    folders=("LVBench", "lvbench"),
    files=("video_info.meta.jsonl", "data/train-*.parquet", "*.parquet", "*.jsonl", "*.json"),
    read=read,
    unfold=unfold,
    styles={
        "lmms": PromptStyle(
            "lmms-eval, tasks/lvbench/utils.py",
            "{question}\n{options}\nAnswer the question with the option letter",
            option="({letter}) {text}",
        )
    },
)

"""Charades-STA (1705.02101): a sentence in, a window in seconds out; mean IoU, and the share at IoU >= 0.3, 0.5, 0.7.

Layout of `lmms-lab/charades_sta`: rows {video, caption, timestamp}, films in Charades_v1_480/.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from statistics import fmean

from videoseek.evaluation.metrics import IOU_THRESHOLDS, Outcome
from videoseek.evaluation.tasks.task import PromptStyle, Question, Row, Task
from videoseek.samples.schema import RecordError, checked_sample

_LMMS = "Please find the visual event described by a sentence in the video, determining its starting and ending times. \
The format should be: 'The event happens in the start time - end time'. For example, The event 'person turn a light \
on' happens in the 24.3 - 30.4 seonds. Now I will give you the textual sentence: {question}. Please return its \
start time and end time."


def read(row: Row) -> Question:
    stamp = row.values.get("timestamp")
    try:
        start, end = map(float, json.loads(stamp) if isinstance(stamp, str) else stamp or [])
    except (ValueError, TypeError) as error:
        raise RecordError("bad_key", f"timestamp {stamp!r} is no [start, end] in seconds") from error
    sample = checked_sample(
        id=str(row.values.get("id") or row.name),  # a sentence about a film may occur twice
        video=row.film(row.text("video"), "Charades_v1_480", "videos", ""),
        question=row.text("caption"),
        answer=json.dumps([start, end]),
        kind="temporal_grounding",
        clues=((start, end),),
    )
    return Question(sample)


def numbers(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Returns `miou` and `recall@T`: the score of a query is its IoU."""
    scores = [outcome.score for outcome in outcomes]
    recalls = {f"recall@{limit}": fmean(score >= limit - 1e-9 for score in scores) for limit in IOU_THRESHOLDS}
    return {"miou": fmean(scores), **recalls}


TASK = Task(
    name="charades",
    citation="Charades-STA, arXiv 1705.02101",
    folders=("Charades-STA", "charades_sta", "charades"),
    files=("test*.parquet", "data/test*.parquet", "*.jsonl", "*.json"),
    read=read,
    numbers=numbers,
    metric="miou",
    styles={"lmms": PromptStyle("lmms-eval, tasks/charades_sta/charades.yaml", open=_LMMS)},
)

"""VideoSIAH-Eval (LongVT, 2511.20785): open questions about long films; a judge gives 0, 0.5 or 1.

Rows of `longvideotool/VideoSIAH-Eval`: video_path, question, answer.
"""

from __future__ import annotations

from videoseek.evaluation.tasks.task import Question, Row, Task, open_question


def read(row: Row) -> Question:
    film = row.film(row.text("video_path"), "", "videos", "video")
    return open_question(str(row.values.get("id") or row.name), film, row.text("question"), row.text("answer"))


TASK = Task(
    name="videosiah",
    citation="LongVT (VideoSIAH-Eval), arXiv 2511.20785",
    folders=("VideoSIAH-Eval", "videosiah"),
    files=("test*.parquet", "data/test*.parquet", "*.jsonl", "*.json"),
    read=read,
    rubric="graded",
)

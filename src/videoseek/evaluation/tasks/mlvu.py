"""MLVU (2406.04264), the tasks with options: M-Avg is the mean over the tasks (macro), not over the questions (micro).

Two layouts: `MLVU/MVLU` (MLVU/json/1_plotQA.json .., films in MLVU/video/1_plotQA/, `answer` is the text of a
candidate) and the flat tables `sy1998/MLVU_dev` and `MLVU_Test` (options inside the question, `answer` is a letter).
The open tasks 8 and 9 are not asked.
"""

from __future__ import annotations

from videoseek.evaluation.tasks.task import PromptStyle, Question, Row, Task, multiple_choice, split_options

_LMMS = "\n{question}\n{options}\nOnly give the best option.\n\nBest option: ("
_SYSTEM = "Carefully watch this video and pay attention to every detail. Based on your observations, select the best \
option that accurately addresses the question."


def read(row: Row) -> Question:
    is_flat = "video_name" in row.values
    film = row.text("video_name" if is_flat else "video")
    kind = row.text("task_type" if is_flat else "question_type")
    question, inside = split_options(row.text("question"))
    return multiple_choice(
        str(row.values.get("question_id") or row.name),
        row.film(film, "", "video", "videos", f"MLVU/video/{row.file.stem}", f"video/{row.file.stem}"),
        question,
        row.values.get("candidates") or inside,
        row.text("answer"),
        groups={"task": (kind,)},
    )


TASK = Task(
    name="mlvu",
    citation="MLVU, arXiv 2406.04264",
    folders=("MLVU", "MVLU", "MLVU_dev", "mlvu"),
    files=("MLVU/json/[1-7]_*.json", "json/[1-7]_*.json", "*.parquet", "data/*.parquet", "*.jsonl", "*.json"),
    read=read,
    metric="macro/task",
    styles={
        "lmms": PromptStyle("lmms-eval, tasks/mlvu/utils.py", _LMMS, option="({letter}) {text}"),
        "vlmevalkit": PromptStyle(
            "VLMEvalKit, dataset/mlvu.py",
            "Question: {question}\nOptions:\n{options}\nOnly give the best option.",
            option="({letter}) {text}",
            system=_SYSTEM,
        ),
    },
)

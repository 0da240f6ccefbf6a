"""Video-MME (2405.21075): four options, three durations, with and without subtitles.

Layout of `lmms-lab/Video-MME`: videomme/test-*.parquet, films in data/<videoID>.mp4, subtitles in
subtitle/<videoID>.srt.
"""

from __future__ import annotations

from dataclasses import replace

from videoseek.evaluation.tasks.task import PromptStyle, Question, Row, Subtitles, Task, multiple_choice

_ONLY_LETTER = "Respond with only the letter (A, B, C, or D) of the correct option."
#: lmms-eval names the subtitles in the prompt of both settings, also of the setting without subtitles.
_LMMS = f"Select the best answer to the following multiple-choice question based on the video and the subtitles. \
{_ONLY_LETTER}\n{{question}}\n{{options}}\nThe best answer is:"
_VLMEVALKIT = f"\nThese are the frames of a video. Select the best answer to the following multiple-choice question \
based on the video. {_ONLY_LETTER}\nQuestion: {{question}}\n{{options}}\nAnswer: "


def read(row: Row) -> Question:
    film = row.text("videoID")
    options = row.values.get("options") or []
    question = multiple_choice(
        row.text("question_id"),
        row.film(film, "data", "videos", "video", ""),
        row.text("question"),
        options,
        row.text("answer"),
        groups={key: (row.text(key),) for key in ("duration", "domain", "sub_category", "task_type")},
    )
    subtitles = row.find(f"{film}.srt", ("subtitle", "subtitles"))
    return replace(question, subtitles=Subtitles(subtitles) if subtitles else None)


TASK = Task(
    name="videomme",
    citation="Video-MME, arXiv 2405.21075",
    folders=("Video-MME", "videomme"),
    files=("videomme/test-*.parquet", "test-*.parquet", "*.jsonl", "*.json"),
    read=read,
    styles={
        "lmms": PromptStyle("lmms-eval, tasks/videomme/utils.py", _LMMS),
        "vlmevalkit": PromptStyle("VLMEvalKit, dataset/videomme.py", _VLMEVALKIT, system=""),
    },
)

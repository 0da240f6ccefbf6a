"""Video-Holmes (2505.21374): short suspense films, options A to F, seven types of questions.

Layout of `TencentARC/Video-Holmes`: test_Video-Holmes.json, films in videos_cropped/<video ID>.mp4.
"""

from __future__ import annotations

from videoseek.evaluation.tasks.task import PromptStyle, Question, Row, Task, multiple_choice

_LMMS = "Question: {question}\n{options}\nSelect the best answer to the following multiple-choice question based on \
the video. Respond with only the letter (A, B, C, D, E, or F) of the correct option."
_VLMEVALKIT = "\n    Based on the given video, reason and answer the single-choice question. Provide your reasoning \
between the <think> and </think> tags, and then give your final answer between the <answer> and </answer> tags.     \
The question is: {question}. The options are: {options}.     Your answer:\n    "


def read(row: Row) -> Question:
    options = row.values.get("Options") or {}
    return multiple_choice(
        row.text("Question ID"),
        row.film(row.text("video ID"), "videos_cropped", "videos", ""),
        row.text("Question"),
        [options[letter] for letter in sorted(options)],
        row.text("Answer"),
        groups={"type": (row.text("Question Type"),)},
    )


TASK = Task(
    name="video_holmes",
    citation="Video-Holmes, arXiv 2505.21374",
    folders=("Video-Holmes", "video_holmes"),
    files=("test_Video-Holmes.json", "test*.json", "*.jsonl"),
    read=read,
    styles={
        "lmms": PromptStyle("lmms-eval, tasks/video_holmes/utils.py", _LMMS),
        "vlmevalkit": PromptStyle("VLMEvalKit, dataset/video_holmes.py", _VLMEVALKIT, system=""),
    },
)

"""MMVU (2501.12380), validation: 27 subjects, options A to E or an open answer.

Layout of `yale-nlp/MMVU`: validation.json, films in videos/<Subject>/<n>.mp4; `video` is a web address (`video_path` in
lmms-eval's copy). The papers' M-Avg is the accuracy of the questions with options.
"""

from __future__ import annotations

from pathlib import PurePosixPath

from videoseek.evaluation.tasks.task import PromptStyle, Question, Row, Task, multiple_choice, open_question

_QUESTION = "\nQuestion:{question}\n"
_NO_REASONING = "Visual Information: processed video\nDo not generate any intermediate reasoning process. "
_CHOICE = f"{_QUESTION}{{options}}\n{_NO_REASONING}Answer directly with the option letter from the\ngiven choices.\n"


def read(row: Row) -> Question:
    address = str(row.values.get("video_path") or row.text("video"))
    film = "videos/" + address.rpartition("videos/")[2] if "videos/" in address else address
    metadata = row.values.get("metadata")
    subject = metadata.get("subject") if isinstance(metadata, dict) else None
    form = "open" if row.text("question_type").startswith("open") else "choice"
    groups = {"subject": (str(subject or PurePosixPath(film).parent.name or "unknown"),), "form": (form,)}
    make = (row.text("id"), row.film(film, "", "videos"), row.text("question"))
    if form == "open":
        return open_question(*make, row.text("answer"), groups)
    choices = row.values.get("choices") or {}
    return multiple_choice(*make, [choices[letter] for letter in sorted(choices)], row.text("answer"), groups=groups)


TASK = Task(
    name="mmvu",
    citation="MMVU, arXiv 2501.12380",
    folders=("MMVU", "mmvu"),
    files=("validation.json", "validation*.parquet", "data/validation*.parquet", "*.jsonl"),
    read=read,
    metric="accuracy/form/choice",
    styles={
        "lmms": PromptStyle(
            "lmms-eval, tasks/mmvu/utils.py",
            _CHOICE,
            f"{_QUESTION}{_NO_REASONING}Directly output the final answer.\n",
            option="{letter}: {text}",
        )
    },
)

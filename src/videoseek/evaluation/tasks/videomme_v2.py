"""Video-MME-v2 (2026): eight options, four questions a film that are scored as a group.

Layout of `MME-Benchmarks/Video-MME-v2`: test.parquet, films in video/<video_id>.mp4, subtitles in
subtitle/<video_id>.jsonl, a word a line.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile
from statistics import fmean

from videoseek.evaluation.metrics import Outcome
from videoseek.evaluation.tasks.task import PromptStyle, Question, Row, Subtitles, Task, multiple_choice, split_options
from videoseek.samples.schema import RecordError

_ASKED = "Question: {question}\n{options}\nSelect the best answer to the following multiple-choice question based on \
the video. Respond with only the letter (A, B, C, D, E, F, G, or H) of the correct option."
#: Structure of a group -> scores of 0 to 4 right answers, in percent. `relevance` counts right answers in any order.
_SCORES = {
    "relevance": (0, 100 / 16, 400 / 16, 900 / 16, 100),
    "[1,2,3,4]": (0, 100 / 16, 400 / 16, 900 / 16, 100),
    "[1,[2,3],4]": (0, 100 / 12, 400 / 12, 700 / 12, 100),
    "[[1,2],3,4]": (0, 100 / 10, 200 / 10, 500 / 10, 100),
}


def read(row: Row) -> Question:
    film, listed = row.text("video_id"), row.values.get("options") or ""
    options = split_options(listed)[1] if isinstance(listed, str) else listed
    structure = "relevance" if row.text("group_type") == "relevance" else row.text("group_structure").replace(" ", "")
    if structure not in _SCORES:
        raise RecordError("bad_key", f"group_structure {structure!r} is none of {', '.join(_SCORES)}")
    groups = {"group_type": (row.text("group_type"),), "structure": (structure,)}
    groups |= {key: (str(row.values[key]),) for key in ("level", "second_head", "third_head") if row.values.get(key)}
    path = row.film(film, "video", "videos", "data")
    asked = (row.text("question_id"), path, row.text("question"))
    question = multiple_choice(*asked, options, row.text("answer"), groups=groups)
    subtitles = row.find(f"{film}.jsonl", ("subtitle", "subtitle/subtitle"))
    return replace(question, subtitles=Subtitles(subtitles) if subtitles else None)


def numbers(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Returns the mean of the groups' scores in percent: a chain of a logic group ends at the first wrong answer.

    The two questions in the inner brackets of a structure may be right in either order.
    """
    films: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        films.setdefault(outcome.id.rpartition("-")[0], []).append(outcome)
    return {"group_score": fmean(_group_score(sorted(group, key=lambda one: one.id)) for group in films.values())}


def _group_score(group: Sequence[Outcome]) -> float:
    structure = group[0].groups_of("structure")[0]
    right = [outcome.score > 0 for outcome in group]
    if structure == "relevance":
        return _SCORES[structure][sum(right)]
    inner = next((block for block in ast.literal_eval(structure) if isinstance(block, list)), None)
    length = len(list(takewhile(bool, right)))
    if inner and length == inner[0] - 1 and len(right) > length + 1 and right[length + 1]:
        length += 1  # the second of the pair without the first
    return _SCORES[structure][length]


TASK = Task(
    name="videomme_v2",
    citation="Video-MME-v2, github MME-Benchmarks/Video-MME-v2",
    folders=("Video-MME-v2", "videomme_v2"),
    files=("test*.parquet", "data/test*.parquet", "*.jsonl", "*.json"),
    read=read,
    numbers=numbers,
    metric="group_score",
    styles={
        "lmms": PromptStyle("lmms-eval, tasks/videomme_v2/utils.py", _ASKED),
        "vlmevalkit": PromptStyle(
            "VLMEvalKit, dataset/videommev2.py", f"These are the frames of a video.\n{_ASKED}", system=""
        ),
    },
)

"""LongVideoBench (2407.15754), validation: two to five options, four duration groups, subtitles on their own clock.

Two layouts: lvb_val.json (`candidates`) and the table of the same rows (`option0` to `option4`, "N/A" where there is no
option). Films in videos/, subtitles in subtitles/. `position` holds the frames of the referred moment.
"""

from __future__ import annotations

from dataclasses import replace

from videoseek.evaluation.tasks.task import PromptStyle, Question, Row, Subtitles, Task, multiple_choice
from videoseek.samples.schema import RecordError

_POST = "Answer with the option's letter from the given choices directly."


def read(row: Row) -> Question:
    options = row.values.get("candidates")
    if options is None:
        listed = [row.values.get(f"option{index}") for index in range(5)]
        options = [option for option in listed if option not in (None, "N/A")]
    key = row.values.get("correct_choice")
    if type(key) is not int:
        raise RecordError("bad_key", f"correct_choice {key!r} is no whole number")
    question = multiple_choice(
        row.text("id"),
        row.film(row.text("video_path"), "videos", ""),
        row.text("question"),
        options,
        key,
        groups={
            "duration_group": (row.text("duration_group"),),
            "question_category": (row.text("question_category"),),
            "level": (str(row.values.get("level")),),
        },
    )
    path = row.find(str(row.values.get("subtitle_path")), ("subtitles", ""))
    # The set's own rule counts a line of less than a second as one second.
    start = float(row.values.get("starting_timestamp_for_subtitles") or 0)
    position = row.values.get("position") or []
    frames = tuple(frame for frame in position if type(frame) is int) if isinstance(position, list) else ()
    return replace(question, subtitles=Subtitles(path, start, 1.0) if path else None, clue_frames=frames)


TASK = Task(
    name="longvideobench",
    citation="LongVideoBench, arXiv 2407.15754",
    folders=("LongVideoBench", "longvideobench"),
    files=("lvb_val.json", "validation-*.parquet", "data/validation-*.parquet", "*.jsonl"),
    read=read,
    styles={
        "lmms": PromptStyle("lmms-eval, tasks/longvideobench/utils.py", f"{{question}}\n{{options}}\n{_POST}\n"),
        "vlmevalkit": PromptStyle(
            "VLMEvalKit, dataset/longvideobench.py", f"{{question}}\n{{options}}\n{_POST}", system=""
        ),
    },
)

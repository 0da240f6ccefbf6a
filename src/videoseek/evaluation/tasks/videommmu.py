"""VideoMMMU (2501.13826): the tracks Perception, Comprehension and Adaptation; the overall score is their mean.

Layout of `lmms-lab/VideoMMMU`: a folder of Parquet for each track, films by discipline (Art/<id>.mp4). The last frame
of a film of Adaptation is the question's picture. `videommmu_question_only` asks Adaptation on films of that picture
alone (question_only/<id>_image.mp4): the gain of knowledge compares the two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from videoseek.evaluation.tasks.task import (
    PromptStyle,
    Question,
    Row,
    Task,
    multiple_choice,
    open_question,
)
from videoseek.samples.schema import RecordError

TRACKS = ("Perception", "Comprehension", "Adaptation")
_DISCIPLINES = ("Art", "Science", "Humanities", "Engineering", "Medicine", "Business")
_FOLDERS = (*_DISCIPLINES, *(f"videos/{name}" for name in _DISCIPLINES), "videos", "")
_HINT = "The picture that belongs to the question is the last frame of the video."
_DIRECT = "Please directly output the option letter/data as the answer."


def _read(row: Row, film_of: Callable[[str], tuple[str, Sequence[str]]]) -> Question:
    names = (row.file.parent.name, row.file.stem)
    track = next((track for track in TRACKS if any(track.lower() in name.lower() for name in names)), None)
    if track is None:
        raise RecordError("missing_field", f"{row.file} lies in no folder {', '.join(TRACKS)}")
    name, (film, folders) = row.text("id"), film_of(row.text("id"))
    path, options = row.film(film, *folders), row.values.get("options") or []
    groups = {"track": (track,), "subject": (name.partition("_")[2].rpartition("_")[0],)}
    # The configurations differ in whether a row names its type.
    is_open = row.values.get("question_type", "multiple-choice") == "open" or not options
    make = (name, path, row.text("question"))
    made = (
        open_question(*make, row.text("answer"), groups)
        if is_open
        else multiple_choice(*make, options, row.text("answer"), groups=groups)
    )
    sample = replace(made.sample, id=f"{track}-{name}")
    return Question(sample, groups, hint=_HINT if track == "Adaptation" else "")


def read(row: Row) -> Question:
    return _read(row, lambda name: (name, _FOLDERS))


def read_question_only(row: Row) -> Question:
    return _read(row, lambda name: (f"{name}_image", ("question_only", "videos/question_only", "")))


_STYLES = {
    "lmms": PromptStyle(
        "lmms-eval, tasks/videommmu",
        f"{{question}}\n{{options}}\n{_DIRECT}",
        f"{_DIRECT} {{question}}",
    )
}
TASK = Task(
    name="videommmu",
    citation="VideoMMMU, arXiv 2501.13826",
    folders=("VideoMMMU", "videommmu"),
    files=("*/test-*.parquet", "*.jsonl", "*.json"),
    read=read,
    metric="macro/track",
    question_only="videommmu_question_only",
    styles=_STYLES,
)
QUESTION_ONLY = replace(
    TASK,
    name="videommmu_question_only",
    question_only=None,
    files=("Adaptation/test-*.parquet", "[Aa]daptation.jsonl", "[Aa]daptation.json"),
    read=read_question_only,
)

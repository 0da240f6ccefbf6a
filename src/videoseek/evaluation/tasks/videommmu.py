"""VideoMMMU (2501.13826): the tracks Perception, Comprehension and Adaptation; the overall score is their mean.

Layout of `lmms-lab/VideoMMMU`: a folder of Parquet for each track, films by discipline (Art/<id>.mp4). The last frame
of a film of Adaptation is the question's picture. `videommmu_question_only` asks Adaptation on films of that picture
alone (question_only/<id>_image.mp4): the gain of knowledge compares the two.
"""

from __future__ import annotations

from dataclasses import replace

from videoseek.evaluation.tasks.task import PromptStyle, Question, Row, Task, multiple_choice, open_question
from videoseek.samples.schema import RecordError

TRACKS = ("Perception", "Comprehension", "Adaptation")
_DISCIPLINES = ("Art", "Science", "Humanities", "Engineering", "Medicine", "Business")
_FOLDERS = (*_DISCIPLINES, *(f"videos/{name}" for name in _DISCIPLINES), "videos", "")
_HINT = "The picture that belongs to the question is the last frame of the video."
_DIRECT = "Please directly output the option letter/data as the answer."


def read(row: Row) -> Question:
    return _read(row, row.film(row.text("id"), *_FOLDERS))


def read_question_only(row: Row) -> Question:
    return _read(row, row.film(f"{row.text('id')}_image", "question_only", "videos/question_only"))


def _read(row: Row, film: str) -> Question:
    place = f"{row.file.parent.name} {row.file.stem}".lower()
    track = next((track for track in TRACKS if track.lower() in place), None)
    if track is None:
        raise RecordError("missing_field", f"{row.file} names none of the tracks {', '.join(TRACKS)}")
    name, options = row.text("id"), row.values.get("options") or []
    groups = {"track": (track,), "subject": (name.partition("_")[2].rpartition("_")[0],)}
    asked = (f"{track}-{name}", film, row.text("question"))
    # The configurations differ in whether a row names its type.
    if row.values.get("question_type") == "open" or not options:
        made = open_question(*asked, row.text("answer"), groups)
    else:
        made = multiple_choice(*asked, options, row.text("answer"), groups=groups)
    return replace(made, hint=_HINT if track == "Adaptation" else "")


TASK = Task(
    name="videommmu",
    citation="VideoMMMU, arXiv 2501.13826",
    folders=("VideoMMMU", "videommmu"),
    files=("*/test-*.parquet", "*.jsonl", "*.json"),
    read=read,
    metric="macro/track",
    question_only="videommmu_question_only",
    styles={
        "lmms": PromptStyle(
            "lmms-eval, tasks/videommmu", f"{{question}}\n{{options}}\n{_DIRECT}", f"{_DIRECT} {{question}}"
        )
    },
)
QUESTION_ONLY = replace(
    TASK,
    name="videommmu_question_only",
    question_only=None,
    files=("Adaptation/test-*.parquet", "[Aa]daptation.jsonl", "[Aa]daptation.json"),
    read=read_question_only,
)

"""The texts of a question for each mode and prompt style, with subtitles, and the hash of both."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from videoseek.config import TrainConfig, UsageError
from videoseek.evaluation.tasks.task import Question, Task
from videoseek.trajectory.grammar import CallFormat
from videoseek.trajectory.run_format import run_format
from videoseek.trajectory.wording import FINAL_ANSWER, question_text
from videoseek.types import CallRecord, Sample
from videoseek.video.decode import probe
from videoseek.video.quotas import overview_clip
from videoseek.video.subtitles import Line, covering_frames, inside, read_subtitles, shifted

#: System texts of the modes without a tool.
SYSTEM = {
    "direct": "You answer questions about a video. Reply with the answer alone, without any explanation.",
    "think": "You answer questions about a video. Write your reasoning between <think> and </think>, and after it the "
    "answer alone between <answer> and </answer>.",
}
_SUBTITLES = "Subtitles of the video, with their times in seconds:\n"
#: Both harnesses put the subtitles, without times, before the question.
_PARITY_SUBTITLES = "This video's subtitles are listed below:\n"


@dataclass(frozen=True, slots=True)
class Prompt:
    """The system turn and the text after the first clip."""

    system: str
    text: str

    @property
    def hash(self) -> str:
        """Returns 16 hexadecimal digits."""
        return hashlib.sha256(f"{self.system}\0{self.text}".encode()).hexdigest()[:16]


def make_prompt(question: Question, task: Task, config: TrainConfig) -> Prompt:
    """Returns the prompt of a question. Raises VideoError if the subtitles need the times of an unreadable film.

    Raises UsageError for a prompt style that the task lacks, and SubtitleError.
    """
    evaluate, sample = config.evaluate, question.sample
    heading, timed = _SUBTITLES, True
    if evaluate.prompt_style == "ours":
        text = question_text(config.prompt.style, sample)
        text = f"{question.hint}\n{text}" if question.hint else text
    else:
        style = task.styles.get(evaluate.prompt_style)
        template = (style.choice if sample.options else style.open) if style is not None else ""
        if style is None or not template:
            known = ", ".join(["ours", *task.styles])
            form = "questions with options" if sample.options else "open questions"
            raise UsageError(f"evaluate.prompt_style={evaluate.prompt_style}: task {task.name} has {known} for {form}")
        options = [style.option.format(letter=letter, text=option) for letter, option in sample.lettered_options]
        text = template.format(question=sample.question, options="\n".join(options))
        heading, timed = _PARITY_SUBTITLES, False
    lines = _prompt_lines(question, config)
    system = system_prompt(task, config)
    return Prompt(system, f"{heading}{subtitle_text(lines, timed)}\n{text}" if lines else text)


def system_prompt(task: Task, config: TrainConfig) -> str:
    """Returns the system turn: the tool's, or that of the mode or of the other harness."""
    evaluate = config.evaluate
    if evaluate.mode == "tool":
        return run_format(config).system_prompt()
    style = task.styles.get(evaluate.prompt_style) if evaluate.mode == "direct" else None
    return style.system if style is not None else SYSTEM[evaluate.mode]


def subtitle_text(lines: Sequence[Line], timed: bool = True) -> str:
    """Returns one line of text per subtitle; an open end is left out."""
    return "\n".join(f"[{line.start_seconds:.1f} s] {line.text}" if timed else line.text for line in lines)


def film_lines(question: Question) -> list[Line]:
    """Returns the subtitles of a film on the film's clock, or [] for a film without subtitles. Raises SubtitleError."""
    if question.subtitles is None:
        return []
    return shifted(read_subtitles(question.subtitles.path), -question.subtitles.start_seconds)


def _prompt_lines(question: Question, config: TrainConfig) -> list[Line]:
    kind = config.evaluate.subtitles
    if question.subtitles is None or kind == "none":
        return []
    lines = film_lines(question)  # also for `window`: a broken file must not end the run at a crop
    if kind in ("all", "window"):
        return lines if kind == "all" else []
    times = overview_clip(probe(question.sample.video), config.video).frame_seconds
    return covering_frames(lines, times, question.subtitles.least_seconds)


@dataclass(frozen=True, slots=True)
class Notes:
    """The ends of observations: the subtitles of the crops, and after turn `last_call_turn` the demand to answer.

    `last_call_turn` counts from 0; None demands no answer. `questions` is empty without subtitles of crops.
    """

    questions: Mapping[str, Question]
    last_call_turn: int | None

    def __call__(self, sample: Sample, records: Sequence[CallRecord]) -> str:
        lines = film_lines(self.questions[sample.id]) if self.questions else []
        clips = [record.clip for record in records if record.clip is not None]
        shown = [line for line in lines if any(inside([line], (c.start_seconds, c.end_seconds)) for c in clips)]
        note = f"\nSubtitles:\n{subtitle_text(shown)}" if shown else ""
        return note + (FINAL_ANSWER if records[0].turn == self.last_call_turn else "")


def with_prompts(fmt: CallFormat, system: str, texts: Mapping[str, str]) -> CallFormat:
    """Returns a format with the same grammar, another system turn, and the text of each sample's id."""
    prompted = copy.copy(fmt)
    # Attributes of the instance hide the class's methods: any format keeps its own parser and its own constructor.
    vars(prompted).update(system_prompt=lambda: system, prompt_text=lambda sample: texts[sample.id])
    return prompted

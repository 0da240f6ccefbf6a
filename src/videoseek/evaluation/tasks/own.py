"""Questions of the project itself: the clue world (`clueworld[:NUMBER]`) and data files of any readable format."""

from __future__ import annotations

import os
from dataclasses import dataclass

from videoseek.config import TrainConfig
from videoseek.evaluation.tasks.task import Loaded, Question, Task, without_repeated_ids
from videoseek.samples.readers.rows import Problem, VideoPaths
from videoseek.samples.rules import is_error, question_problems
from videoseek.samples.sources import Loading, load_samples
from videoseek.types import Sample


@dataclass(frozen=True, kw_only=True)
class SourceTask(Task):
    """The questions of a source as in `data.eval`."""

    source: str

    def load(self, config: TrainConfig) -> Loaded:
        """Reads or generates all samples; kind and missing films are found without opening a film."""
        data = config.data
        paths = VideoPaths.of(data.video_root, data.video_prefixes)
        samples = load_samples([self.source], Loading(config.seed, held_out=True, paths=paths, skip_bad=True))
        problems = list(samples.bad())
        questions = []
        for sample in samples:
            problem = _problem(sample)
            if problem is None:
                questions.append(Question(sample, {"kind": (sample.kind,)}))
            else:
                problems.append((sample.id, problem))
        return without_repeated_ids(Loaded(questions, problems))


def _problem(sample: Sample) -> Problem | None:
    if sample.kind == "perception":
        return Problem("perception", "a sample of kind 'perception' asks no question")
    if not os.path.exists(sample.video.partition("#fps=")[0]):
        return Problem("missing_film", f"film {sample.video!r} does not exist")
    found = next((problem for problem in question_problems(sample) if is_error(problem.code)), None)
    return Problem("bad_key", found.message) if found and found.code == "bad_option" else found

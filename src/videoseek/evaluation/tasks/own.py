"""Questions of the project itself: the clue world (`clueworld[:NUMBER]`) and data files of any readable format."""

from __future__ import annotations

import os

from videoseek.config import TrainConfig
from videoseek.evaluation.tasks.task import Loaded, Question, Task, without_repeated_ids
from videoseek.samples.readers.rows import Problem, VideoPaths
from videoseek.samples.sources import Loading, load_samples
from videoseek.types import Sample


class SourceTask(Task):
    """The questions of a source as in `data.eval`; `files` holds the source."""

    def load(self, config: TrainConfig) -> Loaded:
        """Reads or generates all samples; kinds and missing films are found without opening a film."""
        paths = VideoPaths.of(config.data.video_root, config.data.video_prefixes)
        samples = load_samples(self.files, Loading(config.seed, held_out=True, paths=paths, skip_bad=True))
        found = [(sample, _problem(sample)) for sample in samples]
        questions = [Question(sample, {"kind": (sample.kind,)}) for sample, problem in found if problem is None]
        problems = [(sample.id, problem) for sample, problem in found if problem is not None]
        return without_repeated_ids(Loaded(questions, [*samples.bad(), *problems]))


def _problem(sample: Sample) -> Problem | None:
    # The rules open films with torch, which takes seconds to import: errors in the arguments come first.
    from videoseek.samples.rules import is_error, question_problems

    if sample.kind == "perception":
        return Problem("perception", "a sample of kind 'perception' asks no question")
    if not os.path.exists(sample.video.partition("#fps=")[0]):
        return Problem("missing_film", f"film {sample.video!r} does not exist")
    return next((problem for problem in question_problems(sample) if is_error(problem.code)), None)

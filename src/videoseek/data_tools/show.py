"""`python -m videoseek.data show`: one sample as a page: what the model is shown, what it says, what it sees then."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from videoseek.config import UsageError, option
from videoseek.data_tools.paths import output_file
from videoseek.data_tools.settings import SourceSettings, parse_sources
from videoseek.data_tools.video_probe import decode_workers
from videoseek.files import write_text
from videoseek.pages.document import document
from videoseek.pages.records import RecordedTurn, Trajectory
from videoseek.pages.viewer import record_article
from videoseek.rewards.trajectory_guided import write_rewards
from videoseek.rollout.environment import Environment
from videoseek.samples.check import Rules, call_problems, question_problems, time_problems, turn_problems
from videoseek.samples.readers import Reader
from videoseek.samples.schema import DataError
from videoseek.types import Sample, StopReason
from videoseek.video.decode import probe

USAGE = "python -m videoseek.data show FILE id=ID|index=N out=FILE.html [key=value ...]"


@dataclass(frozen=True)
class ShowSettings(SourceSettings):
    id: str | None = option(None, "id of the sample")
    index: int | None = option(None, "or its number among the file's records, from 1", at_least=1)
    out: str | None = option(None, "page to write (.html)")


def main(arguments: list[str]) -> None:
    files, settings = parse_sources(arguments, ShowSettings(), USAGE)
    if len(files) != 1:
        raise UsageError(f"one data file is wanted, got {len(files)}; {USAGE}")
    if (settings.id is None) == (settings.index is None):
        raise UsageError(f"give either id= or index=; {USAGE}")
    if settings.out is None:
        raise UsageError(f"out= is missing; {USAGE}")
    out = output_file("out", settings.out, (".html",))
    sample = find(files[0], settings)
    with decode_workers(settings.video.stall_seconds, 1):
        write_text(out, page(sample, settings.environment(), settings.rules))
    print(out)


def find(path: Path, settings: ShowSettings) -> Sample:
    """The sample with the wanted id or number. Raises DataError when there is none, or it cannot be read."""
    reader = Reader(path, settings.format, settings.paths, settings.prompt.format)
    number = 0
    for number, (_, _, row) in enumerate(reader.rows(set()), 1):
        if row.problem is not None and number == settings.index:
            raise DataError(f"{row.where}: {row.problem.message}")
        if row.sample is not None and (number == settings.index or row.sample.id == settings.id):
            return row.sample
    wanted = f"id {settings.id!r}" if settings.id is not None else f"index {settings.index}"
    raise DataError(f"{path} has no readable record with {wanted} among its {number}")


def page(sample: Sample, environment: Environment, rules: Rules) -> str:
    """One HTML file. Raises VideoError when the video cannot be read, DataError for a text that no tokenizer takes."""
    problems = list(question_problems(sample))
    if any(problem.code == "bad_text" for problem in problems):
        raise DataError(f"sample {sample.id!r}: {problems[0].message}")
    info = probe(sample.video)
    problems += [*turn_problems(sample, rules), *time_problems(sample, info), *call_problems(sample, info, rules)]
    article = record_article(recorded(sample, environment), "Calls", [problem.message for problem in problems])
    return document(f"Sample {sample.id}", [article])


def recorded(sample: Sample, environment: Environment) -> Trajectory:
    """The recorded trajectory replayed, with its rewards; one that goes on after its end is shown without crops."""
    builder = environment.open(sample)
    prompt = Trajectory.from_json(builder.finish(StopReason.REFERENCE).to_json())
    if not sample.turns:
        return prompt
    try:
        episode = environment.replay(sample)
    except ValueError:
        encode = environment.vocabulary.encode
        turns = [RecordedTurn("assistant", text, len(encode(text))) for text in sample.turns]
        return replace(prompt, turns=(*prompt.turns, *turns))
    if sample.kind != "perception" and (sample.kind != "temporal_grounding" or sample.clues):
        write_rewards([episode], call_format=environment.fmt.name)
    return Trajectory.from_json(episode.to_json())

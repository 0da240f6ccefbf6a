"""`python -m videoseek.data show`: writes a sample as a page: the prompt, the turns, and the clips of the calls."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from videoseek.config import UsageError
from videoseek.data_tools.paths import output_file
from videoseek.data_tools.protocol import protocol_rules, replay_environment
from videoseek.data_tools.settings import ShowSettings, parse_sources
from videoseek.data_tools.video_probe import decode_workers
from videoseek.files import write_text
from videoseek.pages.page import document
from videoseek.pages.viewer import record_article
from videoseek.rewards.trajectory_guided import write_rewards
from videoseek.rollout.environment import Environment
from videoseek.samples.readers import Reader
from videoseek.samples.rules import Rules, call_problems, question_problems, time_problems, turn_problems
from videoseek.samples.schema import DataError
from videoseek.trajectory_record import RecordedTurn, TrajectoryRecord
from videoseek.types import Sample, StopReason
from videoseek.video.decode import probe


def main(arguments: list[str]) -> None:
    files, settings = parse_sources(arguments, ShowSettings())
    if len(files) != 1:
        raise UsageError(f"show reads one data file, got {len(files)}; {settings.usage}")
    if (settings.id is None) == (settings.index is None):
        raise UsageError(f"give either id= or index=; {settings.usage}")
    if settings.out is None:
        raise UsageError(f"out= is missing; {settings.usage}")
    out = output_file("out", settings.out, (".html",))
    sample = find(files[0], settings)
    with decode_workers(settings.video.stall_seconds, 1):
        write_text(out, page(sample, replay_environment(settings), protocol_rules(settings)))
    print(out)


def find(path: Path, settings: ShowSettings) -> Sample:
    """Returns the sample with the id or number of the settings. Raises DataError for a missing or unreadable sample."""
    reader = Reader(path, settings.format, settings.paths, settings.prompt.format)
    number = 0
    for number, row in enumerate(reader.rows(set()), 1):
        if row.problem is not None and number == settings.index:
            raise DataError(f"{row.where}: {row.problem.message}")
        if row.sample is not None and (number == settings.index or row.sample.id == settings.id):
            return row.sample
    name = f"id {settings.id!r}" if settings.id is not None else f"index {settings.index}"
    raise DataError(f"{path} has no readable record with {name} among its {number}")


def page(sample: Sample, environment: Environment, rules: Rules) -> str:
    """Returns an HTML file. Raises VideoError for an unreadable video, DataError for text with invalid Unicode."""
    problems = list(question_problems(sample))
    if any(problem.code == "bad_text" for problem in problems):
        raise DataError(f"sample {sample.id!r}: {problems[0].message}")
    info = probe(sample.video)
    problems += [*turn_problems(sample, rules), *time_problems(sample, info), *call_problems(sample, info, rules)]
    article = record_article(recorded(sample, environment), "Calls", [problem.message for problem in problems])
    return document(f"Sample {sample.id}", [article])


def recorded(sample: Sample, environment: Environment) -> TrajectoryRecord:
    """Replays the recorded trajectory and adds rewards. A trajectory that continues after the end gets no crops."""
    builder = environment.open(sample)
    prompt = TrajectoryRecord.from_episode(builder.finish(StopReason.REFERENCE))
    if not sample.turns:
        return prompt
    try:
        episode = environment.replay(sample)
    except ValueError:
        encode = environment.vocabulary.encode
        turns = [RecordedTurn("assistant", text, len(encode(text))) for text in sample.turns]
        return replace(prompt, turns=(*prompt.turns, *turns))
    if sample.kind != "perception" and (sample.kind != "temporal_grounding" or sample.clues):
        limits = environment.tool.limits
        write_rewards([episode], call_format=environment.fmt, min_window_seconds=limits.min_window_seconds)
    return TrajectoryRecord.from_episode(episode)

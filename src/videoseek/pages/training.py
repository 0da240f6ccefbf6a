"""Shows the training data of GRPO: the episodes and rewards of a group."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from statistics import fmean

from videoseek.pages.page import Markup, join, tag
from videoseek.pages.run_files import RunFiles, read_trajectories
from videoseek.pages.viewer import window_text
from videoseek.trajectory_record import TrajectoryRecord
from videoseek.types import Call, CallRecord


def training_group(run: RunFiles) -> Markup:
    """Shows the group with the widest spread of rewards, at the first and at the last recorded step."""
    if not run.training:
        return Markup("")
    steps = sorted({min(run.training), max(run.training)})
    tables = [_group_table(step, _widest_group(read_trajectories(run.training[step]))) for step in steps]
    intro = "A group is one question answered several times; an episode is pushed by its reward minus the group's mean."
    return tag("section", tag("h2", "Groups in training"), tag("p", intro, class_="quiet"), *tables)


def _widest_group(episodes: Sequence[TrajectoryRecord]) -> list[TrajectoryRecord]:
    """Returns the group with the widest spread; the episodes of a group follow each other in the file."""
    groups = [list(group) for _, group in groupby(episodes, key=lambda episode: episode.sample.id)]
    return max(groups, key=_reward_spread, default=[])


def _reward_spread(group: Sequence[TrajectoryRecord]) -> float:
    rewards = [_reward(episode) for episode in group]
    return max(rewards) - min(rewards)


def _reward(episode: TrajectoryRecord) -> float:
    return episode.rewards.get("reward", 0.0)


def _group_table(step: int, group: Sequence[TrajectoryRecord]) -> Markup:
    if not group:
        return tag("p", f"Step {step}: no episode was recorded.", class_="notice")
    sample = group[0].sample
    mean = fmean(map(_reward, group))
    parts = [name for name in group[0].rewards if name != "reward"]
    header = ["crops", "answer", "reward", "minus mean", *(name.replace("_", " ") for name in parts)]
    rows = [tag("tr", *(tag("td", text) for text in _episode_cells(episode, mean, parts))) for episode in group]
    clues = ", ".join(window_text(*clue) for clue in sample.clues) or "none"
    heading = f"Step {step}: {sample.question} Key {sample.answer}; clues: {clues}"
    head = tag("thead", tag("tr", *(tag("th", name, scope="col") for name in header)))
    table = tag("table", head, tag("tbody", *rows))
    return join([tag("h3", heading), tag("div", table, class_="wide group")])


def _episode_cells(episode: TrajectoryRecord, mean: float, parts: Sequence[str]) -> list[str]:
    reward = _reward(episode)
    crops = [_call_text(record) for record in episode.calls]
    shown = [f"{episode.rewards[name]:.3g}" if name in episode.rewards else "–" for name in parts]
    answer = (episode.prediction or "none")[:80]
    return [", ".join(crops) or "none", answer, f"{reward:.3f}", f"{reward - mean:+.3f}", *shown]


def _call_text(record: CallRecord) -> str:
    if record.call is None:
        return "unreadable call"
    if isinstance(record.call, Call):
        label = window_text(record.call.start_seconds, record.call.end_seconds)
    else:
        label = record.call.name
    return f"{label} (failed)" if record.failed else label

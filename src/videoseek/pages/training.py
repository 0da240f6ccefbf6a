"""What RL learns from: one group of training episodes, told apart by their rewards."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from statistics import fmean

from videoseek.pages.markup import Markup, join, tag
from videoseek.pages.records import RunFiles, Trajectory, read_trajectories
from videoseek.pages.timeline import window_text
from videoseek.types import CallRecord


def training_group(run: RunFiles) -> Markup:
    """The group with the largest spread of rewards, of the first and of the last recorded step."""
    if not run.training:
        return Markup("")
    steps = sorted({min(run.training), max(run.training)})
    tables = [_table(step, _widest(read_trajectories(run.training[step]))) for step in steps]
    intro = "A group is one question answered several times; an episode is pushed by its reward minus the group's mean."
    return tag("section", tag("h2", "Groups in training"), tag("p", intro, class_="quiet"), *tables)


def _widest(episodes: Sequence[Trajectory]) -> list[Trajectory]:
    """Episodes of a group stand in a row; the first of equally wide groups."""
    groups = [list(group) for _, group in groupby(episodes, key=lambda episode: episode.sample.id)]
    return max(groups, key=_spread, default=[])


def _spread(group: Sequence[Trajectory]) -> float:
    rewards = [_reward(episode) for episode in group]
    return max(rewards) - min(rewards)


def _reward(episode: Trajectory) -> float:
    return episode.rewards.get("reward", 0.0)


def _table(step: int, group: Sequence[Trajectory]) -> Markup:
    if not group:
        return tag("p", f"Step {step}: no episode was recorded.", class_="notice")
    sample = group[0].sample
    mean = fmean(map(_reward, group))
    parts = [name for name in group[0].rewards if name != "reward"]
    header = ["crops", "answer", "reward", "minus mean", *(name.replace("_", " ") for name in parts)]
    rows = [tag("tr", *(tag("td", text) for text in _row(episode, mean, parts))) for episode in group]
    clues = ", ".join(window_text(*clue) for clue in sample.clues) or "none"
    heading = f"Step {step}: {sample.question} Key {sample.answer}; clues: {clues}"
    head = tag("thead", tag("tr", *(tag("th", name, scope="col") for name in header)))
    table = tag("table", head, tag("tbody", *rows))
    return join([tag("h3", heading), tag("div", table, class_="wide group")])


def _row(episode: Trajectory, mean: float, parts: Sequence[str]) -> list[str]:
    reward = _reward(episode)
    crops = [_crop(record) for record in episode.calls]
    shown = [f"{episode.rewards[name]:.3g}" if name in episode.rewards else "–" for name in parts]
    answer = (episode.prediction or "none")[:80]
    return [", ".join(crops) or "none", answer, f"{reward:.3f}", f"{reward - mean:+.3f}", *shown]


def _crop(record: CallRecord) -> str:
    if record.call is None:
        return "unreadable call"
    window = window_text(record.call.start_seconds, record.call.end_seconds)
    return window if record.clip is not None else f"{window} (failed)"

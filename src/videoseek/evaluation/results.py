"""results.json: the numbers of a task, with everything that a stranger needs to believe them."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from videoseek.config import TrainConfig
from videoseek.distributed import environment_report
from videoseek.evaluation.answers import Line
from videoseek.evaluation.judge import prompt_hash as judge_prompt_hash
from videoseek.evaluation.metrics import Outcome, film_interval, knowledge_gain, summarize
from videoseek.evaluation.tasks.task import Loaded, Question, Task

#: Values of a line whose means stand in the results, over the lines that have them.
_MEANS = ("calls", "turns", "tokens", "new_tokens", "seconds", "clue_recall", "clue_iou", "right_parity")


def draw(loaded: Loaded, limit: int | None, seed: int) -> tuple[list[Question], int]:
    """Returns the questions of a draw of `limit` rows by the seed, and the number of drawn rows with a missing film.

    All questions about a film stand together.
    """
    questions = sorted(loaded.questions, key=lambda question: question.sample.video)
    count = len(questions)
    # The rows after `count` stand for those with a missing film.
    chosen = sorted(np.random.default_rng(seed).permutation(count + loaded.num_missing)[:limit].tolist())
    return [questions[index] for index in chosen if index < count], sum(index >= count for index in chosen)


def outcomes_of(lines: Sequence[Line]) -> list[Outcome]:
    """Returns the outcomes of lines of answers."""
    return [
        Outcome(
            line["id"],
            line["film"],
            line["right"],
            line["status"],
            {name: tuple(groups) for name, groups in line["groups"].items()},
        )
        for line in lines
    ]


def results_of(
    task: Task, config: TrainConfig, loaded: Loaded, lines: Sequence[Line], num_missing: int
) -> dict[str, Any]:
    """Returns the content of results.json. `lines` are the answers to all drawn questions, in order."""
    outcomes = outcomes_of(lines)
    values = summarize(outcomes, sorted({name for line in lines for name in line["groups"]}), config.seed)
    values |= task.numbers(outcomes)
    values["accuracy_with_missing"] = sum(outcome.score for outcome in outcomes) / (len(outcomes) + num_missing)
    values |= {f"mean/{name}": fmean(found) for name in _MEANS if (found := [x[name] for x in lines if name in x])}
    values["tool_share"] = fmean(line.get("calls", 0) > 0 for line in lines)
    prompt_hash = hashlib.sha256("".join(str(line["prompt_hash"]) for line in lines).encode()).hexdigest()[:16]
    return {
        "task": task.name,
        "citation": task.citation,
        "model": config.model,
        "mode": config.evaluate.mode,
        "questions": f"{len(lines) + num_missing:,} of {len(loaded.questions) + loaded.num_missing:,}",
        "missing_films": num_missing,
        "problems": [[where, problem.code, problem.message] for where, problem in loaded.problems],
        "metric": task.metric,
        "value": _finite(values.get(task.metric, math.nan)),  # a small draw may lack the group
        "interval": [_finite(value) for value in _interval(task.metric, outcomes, config.seed)],
        "values": {name: _finite(value) for name, value in values.items()},
        "reasons": dict(sorted(Counter(line["reason"] for line in lines).items())),
        "prompt_hash": prompt_hash,
        "ids_hash": ids_hash([line["id"] for line in lines]),
        "protocol": f"{protocol(config)}; prompts {prompt_hash}",
        "judge_prompt_hash": judge_prompt_hash(task.rubric) if config.evaluate.judge else None,
        "settings": asdict(config),
        "environment": environment_report(),
    }


def ids_hash(ids: Sequence[str]) -> str:
    """Returns 16 hexadecimal digits of the questions' ids, in order."""
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()[:16]


def protocol(config: TrainConfig) -> str:
    """Returns the settings that tables of other protocols differ in."""
    video, evaluate, rollout = config.video, config.evaluate, config.rollout
    crops = f", crops of {video.coarse_tokens}, {video.medium_tokens} or {video.fine_tokens}" if _tool(config) else ""
    forced = " and a forced answer" if evaluate.final_answer else ""
    turns = f"{rollout.max_turns} turns{forced}" if _tool(config) else "1 turn"
    answers = f"{evaluate.votes} votes at temperature {rollout.temperature:g}" if evaluate.votes > 1 else "greedy"
    if config.model.startswith("openai:"):
        own = f"{evaluate.votes} votes with " * (evaluate.votes > 1) + "the endpoint's own sampling"
        answers = f"{answers if evaluate.send_sampling else own}, frames as pictures of detail {evaluate.image_detail}"
    return (
        f"{evaluate.mode}: {video.overview_fps:g} fps, at most {video.max_frames} frames, {video.overview_tokens} "
        f"tokens{crops}; {turns}, {answers}; subtitles {evaluate.subtitles}; words {evaluate.prompt_style}"
    )


def _tool(config: TrainConfig) -> bool:
    return config.evaluate.mode == "tool"


def _interval(metric: str, outcomes: Sequence[Outcome], seed: int) -> tuple[float, float]:
    """Returns the 95 % interval of the heading number over films, or NaN for a number that is no mean of questions."""
    kind, _, place = metric.partition("/")
    groups = None
    if kind == "macro":
        outcomes = [outcome for outcome in outcomes if outcome.groups_of(place)]
        groups = [outcome.groups_of(place)[0] for outcome in outcomes]
    elif kind == "accuracy" and place:
        division, _, group = place.partition("/")
        outcomes = [outcome for outcome in outcomes if group in outcome.groups_of(division)]
    elif metric not in ("accuracy", "miou"):
        return math.nan, math.nan
    scores, films = [outcome.score for outcome in outcomes], [outcome.film for outcome in outcomes]
    return film_interval(scores, films, groups=groups, seed=seed)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def gain_of_knowledge(results: dict[str, Any], question_only: Path) -> dict[str, float]:
    """Returns VideoMMMU's gain over the results of the run on pictures alone, or {} without such a run.

    Draws with a limit hold different questions and have no gain.
    """
    name = "accuracy/track/Adaptation"
    if not question_only.is_file() or results["settings"]["evaluate"]["limit"] is not None:
        return {}
    before, after = json.loads(question_only.read_text(encoding="utf-8"))["values"][name], results["values"].get(name)
    return {"knowledge_gain": knowledge_gain(before, after)} if before < 1 and after is not None else {}


def table(results: Sequence[dict[str, Any]]) -> str:
    """Returns a Markdown table, a row for each task: shares in percent, counts and means a question."""
    head = ["task", "mode", "questions", "metric", "%", "95 % interval", "% with missing films", "unanswered", "errors"]
    head += ["calls", "turns", "tokens", "s", "clue recall", "drop by swapped crops"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for result in results:
        values = result["values"]
        low, high = (_percent(value) for value in result["interval"])
        cells = [result["task"], result["mode"], result["questions"], result["metric"]]
        # Video-MME-v2's group score is in percent already.
        cells += [f"{result['value']:.1f}" if result["metric"] == "group_score" else _percent(result["value"])]
        cells += [f"{low} to {high}", _percent(values["accuracy_with_missing"]), f"{values['num_unanswered']:.0f}"]
        cells += [f"{values['num_engine_error'] + values['num_judge_error']:.0f}"]
        cells += [f"{values[f'mean/{name}']:.1f}" if f"mean/{name}" in values else "-" for name in _MEANS[:3]]
        cells += [f"{values['mean/seconds']:.1f}", _percent(values.get("mean/clue_recall"))]
        cells += [_percent(result.get("necessity", {}).get("drop"))]
        lines.append(f"| {' | '.join(cells)} |")
    notes = [f"{result['task']}: {result['protocol']}{_bill_text(result['usage'])}" for result in results]
    return "\n".join([*lines, "", *notes])


def _bill_text(usage: dict[str, Any] | None) -> str:
    if usage is None:
        return ""
    cost = "unknown" if usage["cost"] is None else f"{usage['cost']:.2f}"
    counts = f"{usage['requests']:,} replies, {usage['prompt_tokens']:,} prompt tokens, {usage['completion_tokens']:,}"
    return f"; {counts} reply tokens, cost {cost}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"

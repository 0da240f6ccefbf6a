"""`report.html` of a run: verdict, curves, episodes, training groups, and the facts of the run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from videoseek.files import write_text
from videoseek.pages.charts import MODEL_COLOURS, Bar, Series, bar_chart, line_chart, percent
from videoseek.pages.page import Markup, document, join, tag
from videoseek.pages.run_files import RunFiles, choose_questions, model_label
from videoseek.pages.training import training_group
from videoseek.pages.viewer import KIND_LABELS, viewer


def write_report(output_dir: Path) -> Path:
    """Writes `output_dir`/report.html from the run's files, whole or not at all, and returns its path.

    Raises UsageError for a folder of another kind, and RunError for a malformed file.
    """
    path = output_dir / "report.html"
    write_text(path, page(RunFiles.read(output_dir)))
    return path


def page(run: RunFiles) -> str:
    """Returns the whole HTML file."""
    colours = {model: MODEL_COLOURS[index % len(MODEL_COLOURS)] for index, model in enumerate(run.models)}
    title = _page_title(run)
    sections = [
        _verdict_section(run, colours),
        _metric_curves(run),
        _episode_section(run, colours),
        training_group(run),
        _run_facts(run),
    ]
    return document(title, sections)


def _page_title(run: RunFiles) -> str:
    recipe, seed = run.summary.get("recipe"), run.summary.get("seed")
    return f"videoseek: {recipe or run.folder.resolve().name}" + (f", seed {seed}" if seed is not None else "")


def _verdict_section(run: RunFiles, colours: dict[str, str]) -> Markup:
    """Shows one sentence, the bars and the table of the scored models."""
    scored = {model: run.number(f"accuracy/{model}") for model in run.models}
    shares = {model_label(model): percent(value) for model, value in scored.items() if value is not None}
    if not shares:
        return tag("p", "No model of this run has been scored yet.", class_="lead")
    *before, (last, best) = shares.items()
    sentence = f"{last} answers {best} of the held-out questions"
    sentence += "".join(f", {label} {share}" for label, share in reversed(before))
    chance = run.number("chance")
    sentence += f"; guessing gets {percent(chance)}." if chance is not None else "."
    samples = max((len(e) for question in run.questions for e in question.episodes.values()), default=0)
    note = f"{len(run.questions)} held-out questions, each answered {samples} times; " if samples else ""
    note += "whiskers: one standard error over questions; dashed: guessing." if samples else "Dashed: guessing."
    return tag(
        "section",
        tag("p", sentence, class_="lead"),
        tag("div", _accuracy_bars(run, colours, note), tag("div", _score_table(run), class_="wide"), class_="verdict"),
    )


def _accuracy_bars(run: RunFiles, colours: dict[str, str], note: str) -> Markup:
    groups = []
    for heading, key, chance in (
        ("all questions", "accuracy", "chance"),
        ("questions that need a crop", "accuracy_tool", "chance_tool"),
    ):
        bars = [
            Bar(
                model_label(model),
                colours[model],
                value,
                run.standard_error(model, tool_only=key == "accuracy_tool"),
                run.number(chance),
            )
            for model in run.models
            if (value := run.number(f"{key}/{model}")) is not None
        ]
        if bars:
            groups.append(tag("div", tag("h3", f"Accuracy: {heading}"), bar_chart(bars)))
    return tag("div", *groups, tag("p", note, class_="quiet"))


def _score_table(run: RunFiles) -> Markup:
    """Shows a column per model, and a row per score of at least one model."""
    rows = [
        ("Accuracy, sampled", "accuracy", percent),
        ("… that need a crop", "accuracy_tool", percent),
        *((f"… {label}", f"accuracy_{kind}", percent) for kind, label in KIND_LABELS.items()),
        ("Accuracy, greedy", "accuracy_greedy", percent),
        ("… that need a crop", "accuracy_greedy_tool", percent),
        ("Clue IoU of the crops", "clue_iou", "{:.3f}".format),
        ("Calls per episode", "calls_per_episode", "{:.2f}".format),
        ("Well-formed", "format", "{:.3f}".format),
        ("Reward", "reward", "{:.3f}".format),
        ("Cut by a limit", "overlong_rate", percent),
        ("… of time", "deadline_rate", percent),
        ("Questions with an unreadable video", "unreadable", percent),
    ]
    body = []
    for label, key, show in rows:
        values = [run.number(f"{key}/{model}") for model in run.models]
        if any(value is not None for value in values):
            cells = [tag("td", show(value) if value is not None else "–") for value in values]
            body.append(tag("tr", tag("th", label, scope="row"), *cells))
    header = tag("tr", tag("td"), *(tag("th", model_label(model), scope="col") for model in run.models))
    return tag("table", tag("thead", header), tag("tbody", *body))


def _metric_curves(run: RunFiles) -> Markup:
    supervised = [stage for stage in ("direct", "sft") if any(row["stage"] == stage for row in run.metrics)]
    sft = [
        line_chart(title, [_metric_series(run, stage, key) for stage in supervised], log=log)
        for title, key, log in (
            ("Loss", "loss", True),
            ("Gradient norm", "grad_norm", False),
            ("Held-out accuracy, greedy", "eval/accuracy", False),
            ("Tokens per second", "perf/tokens_per_s", False),
        )
    ]
    grpo = [
        line_chart(title, [_metric_series(run, "grpo", key)], include=include, log=log)
        for title, key, include, log in (
            ("Reward", "reward/mean", (0.0,), False),
            ("Accuracy", "rewards/accuracy/mean", (0.0, 1.0), False),
            ("Held-out accuracy, greedy", "eval/accuracy", (0.0, 1.0), False),
            ("Clue score", "rewards/clue_score/mean", (0.0, 1.0), False),
            ("Format", "rewards/format/mean", (0.0, 1.0), False),
            ("Calls per episode", "tools/calls_per_episode", (0.0,), False),
            ("Groups without spread", "reward/frac_zero_std", (0.0, 1.0), False),
            ("Entropy", "entropy", (0.0,), False),
            ("Gradient norm", "grad_norm", (0.0,), False),
            ("Largest log-prob gap, sampler to trainer", "sampling/logp_diff_max", (0.0,), False),
        )
    ]
    return join(
        [*_chart_section("Supervised fine-tuning", sft), *_chart_section("Reinforcement learning (GRPO)", grpo)]
    )


def _chart_section(heading: str, charts: list[Markup]) -> Iterator[Markup]:
    if any(charts):
        note = tag(
            "p", "By optimizer step; where a pale line shows every step, the dark one is its mean.", class_="quiet"
        )
        yield tag("section", tag("h2", heading), note, tag("div", *charts, class_="charts"))


def _metric_series(run: RunFiles, stage: str, key: str) -> Series:
    rows = [row for row in run.metrics if row["stage"] == stage and key in row]
    colour = MODEL_COLOURS[("direct", "sft", "grpo").index(stage)]
    return Series(model_label(stage), colour, [row["step"] for row in rows], [row[key] for row in rows])


def _episode_section(run: RunFiles, colours: dict[str, str]) -> Markup:
    chosen = choose_questions(run.questions, run.models)
    if not chosen:
        return Markup("")
    intro = "The same held-out question, answered by each model. Pictures hold what the model saw, at its resolution."
    intro += " Crops are cut from the source file, not from the overview."
    return tag(
        "section",
        tag("h2", "Episodes"),
        tag("p", intro, class_="quiet"),
        viewer(chosen, run.models, colours),
        id="episodes",
    )


def _run_facts(run: RunFiles) -> Markup:
    """Shows time, versions, machine and configuration."""
    seconds = run.number("wall_seconds")
    facts = {} if seconds is None else {"time": f"{int(seconds) // 60} min {int(seconds) % 60} s"}
    environment = dict(run.environment)
    attempts = environment.pop("attempts", [])
    if len(attempts) > 1:
        environment.pop("command", None)
        facts["attempts"] = str(len(attempts))
        for number, attempt in enumerate(attempts, start=1):
            facts[f"command {number}, {attempt['started_at']}"] = " ".join(attempt["command"])
    facts |= {name.replace("_", " "): _fact_text(value) for name, value in environment.items() if value or value == 0}
    rows = [tag("tr", tag("th", name, scope="row"), tag("td", value)) for name, value in facts.items()]
    parts = [tag("div", tag("table", tag("tbody", *rows)), class_="wide facts")] if rows else []
    if run.config_text:
        parts.append(tag("details", tag("summary", "config.yaml"), tag("pre", run.config_text)))
    return tag("section", tag("h2", "How it was made"), *parts) if parts else Markup("")


def _fact_text(value: Any) -> str:
    """Writes a value of env.json in words, and omits the versions of missing packages."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {part}" for name, part in value.items() if part is not None)
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)

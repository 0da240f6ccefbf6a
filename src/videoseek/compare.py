"""`python -m videoseek.compare RUN_FOLDER [RUN_FOLDER ...] [out=PAGE.html]`: compares the scores of finished runs.

Prints two Markdown tables. In the first, runs with equal keys except seed and folder form a row with mean and spread
over distinct seeds, and differing keys name the rows. In the second, each run is paired with the first one on the
questions of both: the difference of greedy accuracies with its 95 % interval over films, and the exact McNemar test.
`out=` writes the second table as a page with a picture and every changed question. Folders without a finished run,
runs set aside and repeated seeds are left out and named on stderr.
"""

from __future__ import annotations

import json
import math
import re
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from videoseek.command import parse_folders, run_command
from videoseek.config import UsageError
from videoseek.files import write_text

if TYPE_CHECKING:
    from videoseek.evaluation.paired import Paired

USAGE = "python -m videoseek.compare RUN_FOLDER [RUN_FOLDER ...] [out=PAGE.html]"
#: Keys ignored by the comparison: name, time and place of a run, not its settings.
_NOT_COMPARED = (
    *("recipe", "seed", "output_dir", "resume", "save_every_steps", "save_every_minutes", "save_in_background"),
    *("keep_checkpoints", "evaluate.every_steps", "evaluate.num_questions_inside"),
)
_COLUMNS = ("accuracy_tool", "accuracy_greedy_tool", "clue_iou", "calls_per_episode", "format")
#: `stages.run_folder` moves an earlier run to such a name.
_SET_ASIDE = re.compile(r"\.old-\d+$")
_MAX_IDS = 20
_PAIR_COLUMNS = (
    *("pair", "questions", "films", "of one run only", "accuracy", "of the first", "difference, 95 %"),
    *("gained", "lost", "McNemar p"),
)


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """A run's folder, seed, configuration by dotted key, and scores."""

    folder: Path
    seed: int
    settings: dict[str, str]
    summary: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> FinishedRun:
        """Reads a run folder. Raises UsageError for a folder without a finished run."""
        for name in ("config.yaml", "summary.json"):
            if not (folder / name).is_file():
                raise UsageError(f"{folder} holds no finished run (no {name})")
        config = _read_mapping(folder / "config.yaml", yaml.safe_load)
        flat = {key: _plain(value) for key, value in _flatten(config).items() if key not in _NOT_COMPARED}
        return cls(folder, int(config.get("seed", 0)), flat, _read_mapping(folder / "summary.json", json.loads))

    @property
    def models(self) -> list[str]:
        return [name.split("/", 1)[1] for name in self.summary if name.startswith("accuracy/")]

    def greedy_file(self, model: str) -> Path:
        return self.folder / f"trajectories/greedy_{model}.jsonl"

    @property
    def scores(self) -> dict[str, Any]:
        """Returns the part of the summary that a repetition of the run must reproduce."""
        return {name: value for name, value in self.summary.items() if "/" in name}


def _read_mapping(path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    try:
        value = parse(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        raise UsageError(f"{path} is not of a finished run: {' '.join(str(error).split())}") from error
    if not isinstance(value, dict):
        raise UsageError(f"{path} is not of a finished run: it holds a {type(value).__name__}, no keys")
    return value


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def choose_runs(folders: Sequence[Path]) -> tuple[list[FinishedRun], list[str]]:
    """Returns the runs that count, and a sentence for each doubtful folder. Raises UsageError if no run counts."""
    runs: list[FinishedRun] = []
    problems = []
    for folder in folders:
        if _SET_ASIDE.search(folder.name):
            problems.append(f"{folder} was set aside by a later run; rename it to compare it")
            continue
        try:
            run = FinishedRun.read(folder)
        except UsageError as error:
            problems.append(str(error))
            continue
        equal = [other for other in runs if (other.settings, other.scores) == (run.settings, run.scores)]
        same = [other for other in runs if (other.seed, other.settings) == (run.seed, run.settings)]
        if equal and not same:
            problems.append(f"{folder} has every score of {equal[0].folder} under another seed; is it a copy?")
        if same:
            reason = "it is a copy, with equal scores" if same[0].scores == run.scores else "but its scores differ"
            problems.append(f"{folder} repeats seed {run.seed} of {same[0].folder}: {reason}; one of them counts")
        else:
            runs.append(run)
    if not runs:
        raise UsageError("; ".join(problems))
    return runs, problems


def table(runs: Sequence[FinishedRun]) -> str:
    """Returns a Markdown table: a row per setting and model, a column per score as `mean ± deviation` over seeds."""
    keys = sorted({key for run in runs for key in run.settings if len({r.settings.get(key) for r in runs}) > 1})
    rows: dict[tuple[str, ...], list[FinishedRun]] = {}
    for run in runs:
        rows.setdefault(tuple(run.settings.get(key, "") for key in keys), []).append(run)
    named = ["start model" if key == "model" else key for key in keys]
    lines = [_row([*named, "model", "seeds", *_COLUMNS]), "|---" * (len(keys) + 2 + len(_COLUMNS)) + "|"]
    for values, members in sorted(rows.items()):
        for model in dict.fromkeys(model for run in members for model in run.models):
            having = [run.summary for run in members if model in run.models]
            cells = [_spread([summary[f"{column}/{model}"] for summary in having]) for column in _COLUMNS]
            lines.append(_row([*values, model, str(len(having)), *cells]))
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _spread(values: list[float]) -> str:
    mean = f"{statistics.mean(values):.3f}"
    return f"{mean} ± {statistics.stdev(values):.3f}" if len(values) > 1 else mean


def pair_runs(runs: Sequence[FinishedRun]) -> tuple[dict[str, Paired], list[str]]:
    """Pairs each later run with the first run of the first settings and of its seed, else with the first run.

    Models of one name are compared, or the only models of two runs. Returns the comparisons by name, and a sentence for
    each missing one.
    """
    # numpy would slow the first table.
    from videoseek.evaluation.paired import compare_verdicts, read_verdicts

    pairs, problems = {}, []
    names = [run.folder.name for run in runs]
    labels = {run.folder: str(run.folder) if names.count(run.folder.name) > 1 else run.folder.name for run in runs}
    for run in runs[1:]:
        rivals = (other for other in runs if other.settings == runs[0].settings != run.settings)
        base = next((other for other in rivals if other.seed == run.seed), runs[0])
        models = [(model, model) for model in base.models if model in run.models]
        if len(base.models) == len(run.models) == 1:
            models = [(base.models[0], run.models[0])]
        for first, second in models:
            files = (base.greedy_file(first), run.greedy_file(second))
            if missing := [file for file in files if not file.is_file()]:
                problems.append(f"{second} of {run.folder} has no pair: {missing[0]} is missing")
            elif (result := compare_verdicts(read_verdicts(files[0]), read_verdicts(files[1]))) is None:
                problems.append(f"{second} of {run.folder} has no pair: no question in common with {base.folder}")
            else:
                pairs[f"{labels[run.folder]} {second} - {labels[base.folder]} {first}"] = result
    return pairs, problems


def _cells(name: str, result: Paired) -> list[str]:
    counts = (result.num_questions, result.num_films, result.num_unshared)
    first, second = (f"{accuracy:.3f}" for accuracy in result.accuracies)
    difference = f"{result.difference:+.3f} [{result.low:+.3f}, {result.high:+.3f}]"
    changed = (len(result.gained), len(result.lost))
    return [name, *map(str, counts), second, first, difference, *map(str, changed), f"{result.p_value:.3g}"]


def paired_table(pairs: dict[str, Paired]) -> str:
    """Returns a Markdown table of the comparisons, and the first ids of the questions that changed."""
    lines = [_row(_PAIR_COLUMNS), "|---" * len(_PAIR_COLUMNS) + "|"]
    lines += [_row(_cells(name, result)) for name, result in pairs.items()]
    for name, result in pairs.items():
        for change, ids in (("gained", result.gained), ("lost", result.lost)):
            more = f" and {len(ids) - _MAX_IDS} more (out=PAGE.html lists all)" if len(ids) > _MAX_IDS else ""
            lines += [f"\n{name}, {change}: {', '.join(ids[:_MAX_IDS])}{more}"] if ids else []
    return "\n".join(lines)


def paired_page(pairs: dict[str, Paired]) -> str:
    """Returns a page: the accuracies and the interval of each difference as a picture, and all changed questions."""
    from videoseek.pages.charts import MODEL_COLOURS, Bar, bar_chart
    from videoseek.pages.page import document, tag

    bars = []
    for name, result in pairs.items():
        second, _, first = name.partition(" - ")
        error = None if math.isnan(result.low) else (result.high - result.low) / 2
        bars.append(Bar(first, MODEL_COLOURS[0], result.accuracies[0]))
        bars.append(Bar(second, MODEL_COLOURS[2], result.accuracies[1], error))
    note = "Greedy accuracy on the common questions. The line is the 95 % interval, over films, of the difference."
    head = tag("thead", tag("tr", *(tag("th", name, scope="col") for name in _PAIR_COLUMNS)))
    rows = [tag("tr", *(tag("td", cell) for cell in _cells(name, result))) for name, result in pairs.items()]
    sections = [bar_chart(bars), tag("p", note), tag("div", tag("table", head, tag("tbody", *rows)), class_="wide")]
    for name, result in pairs.items():
        gained, lost = (tag("p", ", ".join(ids) or "none") for ids in (result.gained, result.lost))
        sections.append(tag("section", tag("h2", name), tag("h3", "Gained"), gained, tag("h3", "Lost"), lost))
    return document("Comparison of runs", sections)


def main(arguments: list[str]) -> None:
    pages = [argument for argument in arguments if argument.startswith("out=")]
    runs, problems = choose_runs(parse_folders([a for a in arguments if a not in pages], USAGE))
    print(table(runs))
    pairs, unpaired = pair_runs(runs) if len(runs) > 1 else ({}, [])
    problems += unpaired
    if pairs:
        print(f"\n{paired_table(pairs)}")
    for page in (Path(argument.removeprefix("out=")) for argument in pages):
        if not pairs:
            raise UsageError(f"{page} is not written, since no two runs have a pair; {'; '.join(problems)}")
        write_text(page, paired_page(pairs))
        print(f"\npage: {page}")
    sys.stderr.writelines(f"videoseek: {problem}\n" for problem in problems)


if __name__ == "__main__":
    raise SystemExit(run_command(main))

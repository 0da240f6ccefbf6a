"""Puts what result files hold into the README: their environments, and each goal beside what was measured for it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernel_bench.goals import GOALS
from kernel_bench.recording import Row
from kernel_bench.suite import markdown

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
_BENCHMARK_KEY = ("shape", "mask", "stage", "contestant")


@dataclass(frozen=True, slots=True)
class Measured:
    """The merged content of several files: {file name: environment}, {step: rows}, {step: what went wrong}."""

    environments: dict[str, dict[str, str]]
    steps: dict[str, list[Row]]
    faults: dict[str, str]


def load(paths: Sequence[Path]) -> Measured:
    """Merges files: the newest file with a step speaks for it, the newest with a row for that row."""
    files = [(path.name, json.loads(path.read_text())) for path in paths]
    files.sort(key=lambda file: file[1]["environment"]["date"])
    steps: dict[str, list[Row]] = {}
    faults: dict[str, str] = {}
    benchmark: dict[tuple[Any, ...], Row] = {}
    for name, results in files:
        for step, rows in results["steps"].items():
            if step != "benchmark":
                faults.pop(step, None)
            if step in results["failures"]:
                faults[step] = results["failures"][step].splitlines()[0]
            elif step not in results["finished"]:
                faults[step] = "cut short"
            named = [row | {"file": name} for row in rows]
            if step == "benchmark":
                benchmark |= {tuple(row.get(key) for key in _BENCHMARK_KEY): row for row in named}
                named = list(benchmark.values())
            steps[step] = named
    return Measured({name: results["environment"] for name, results in files}, steps, faults)


def goal_table(measured: Measured) -> str:
    """Returns the goals as a table, with "not measured" where no file has a result."""
    rows = [
        {"goal (T >= 16k, 28:4 heads, D 128, bf16)": goal.text, **goal.judge(measured.steps, measured.faults)}
        for goal in GOALS
    ]
    return markdown(rows)


def write(paths: Sequence[Path], readme: Path, table: Path) -> None:
    """Replaces the text between the README's markers, and writes every row to `table`."""
    measured = load(paths)
    told = [
        f"- `results/{name}`: " + ", ".join(f"{key} {value}" for key, value in about.items())
        for name, about in measured.environments.items()
    ]
    text = readme.read_text()
    head, tail = text.split(BEGIN)[0], text.split(END)[1]
    every_row = f"Every row is in [`results/{table.name}`](results/{table.name})."
    body = "\n\n".join(["\n".join(told), goal_table(measured), every_row])
    _replace(readme, f"{head}{BEGIN}\n\n{body}\n\n{END}{tail}")
    tables = [f"## {step}\n\n{markdown(rows)}" for step, rows in measured.steps.items()]
    _replace(table, "# Measured on a GPU\n\n" + "\n\n".join(tables) + "\n")


def _replace(path: Path, text: str) -> None:
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(text)
    os.replace(unfinished, path)

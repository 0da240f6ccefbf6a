"""Runs steps that yield rows, and keeps every row on disk once it is found: a call may be cut short at any time."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Step = Callable[[], Iterator[Row]]


def run_steps(steps: Mapping[str, Step], environment: Mapping[str, str], path: Path | None) -> bool:
    """Runs all steps in order and rewrites `path` after each row (None: prints only); returns whether all succeeded.

    A row with the key "failed" is a failure, as is a step that raises; the steps after it still run.
    """
    steps_done: dict[str, list[Row]] = {}
    finished: list[str] = []
    failures: dict[str, str] = {}
    results = {"environment": dict(environment), "steps": steps_done, "finished": finished, "failures": failures}
    for name, step in steps.items():
        rows = steps_done.setdefault(name, [])
        try:
            for row in step():
                print(f"{name}: {row}", flush=True)
                rows.append(row)
                _save(results, path)
            finished.append(name)
        except Exception:  # an error is a step's result; the other steps still run
            failures[name] = traceback.format_exc()
        failed = [row for row in rows if "failed" in row]
        if failed:
            failures[name] = f"{len(failed)} of {len(rows)} rows failed\n" + failures.get(name, "")
        print(f"{name}: {failures.get(name, f'{len(rows)} rows')}", flush=True)
        _save(results, path)
    return not failures


def _save(results: Mapping[str, Any], path: Path | None) -> None:
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(results, indent=1) + "\n")
    os.replace(unfinished, path)

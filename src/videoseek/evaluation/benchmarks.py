"""Evaluates a model on tasks: one folder for each model, mode and task, which no later run overwrites.

OUTPUT/MODEL/MODE-HASH/TASK/
    answers.jsonl  results.json  swapped/answers.jsonl

MODE-HASH names the mode and a hash of all settings and weights that decide the answers: other settings get another
folder, and equal ones continue the same folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from videoseek.config import TrainConfig, UsageError
from videoseek.config_merge import config_keys
from videoseek.distributed import barrier
from videoseek.evaluation.answers import merge_answers, read_answers
from videoseek.evaluation.endpoint_engine import bill
from videoseek.evaluation.papers import papers_table
from videoseek.evaluation.results import draw, gain_of_knowledge, ids_hash, outcomes_of, results_of, table
from videoseek.evaluation.runner import Model, TaskRun
from videoseek.evaluation.tasks import find_tasks
from videoseek.evaluation.tasks.task import Loaded, Task
from videoseek.files import write_json
from videoseek.runtime import rank, say
from videoseek.samples.readers.rows import problem_lines

#: A file of weights up to this size is hashed whole. Of a larger one, 4 KiB of each MiB are: no matrix goes unseen.
_WHOLE_BYTES = 2**26
#: Keys that decide answers, beside those that decide the frames.
_DECIDING: tuple[str, ...] = (
    "seed",
    "dtype",
    "prompt.format",
    "prompt.style",
    "rollout.max_turns",
    "rollout.max_new_tokens_per_turn",
)
_DECIDING += ("rollout.max_context_tokens", "rollout.temperature", "rollout.top_p", "rollout.deadline_seconds")
_DECIDING += ("evaluate.mode", "evaluate.prompt_style", "evaluate.subtitles", "evaluate.final_answer")
_DECIDING += ("evaluate.votes", "evaluate.limit", "evaluate.judge", "position_rule")
#: Further ones of a model behind an endpoint.
_DECIDING_REMOTE = ("evaluate.endpoint", "evaluate.image_detail", "evaluate.send_sampling")


def evaluate_tasks(
    config: TrainConfig,
    model_folder: Path | None,
    load_model: Callable[[], Model],
    output_dir: Path,
    *,
    dry_run: bool = False,
) -> list[dict[str, Any]]:
    """Asks the open questions of all tasks, and prints the table. Returns the results of the finished tasks.

    `model_folder` is None for a model behind an endpoint. `load_model` is called only if a question is open. A dry run
    only counts. Raises UsageError and DataError before any question.
    """
    load_model = cache(load_model)
    folder = run_folder(config, model_folder, output_dir)
    tasks = find_tasks(config.evaluate)
    loaded = [load_task(task, config) for task in tasks]
    results = []
    for task, questions in zip(tasks, loaded, strict=True) if not dry_run else ():
        result = _evaluate_task(task, config, questions, load_model, folder / task.name)
        results += [result] if result is not None else []
    if rank() == 0 and results:
        print(table(results))
        if config.evaluate.papers:
            print("\n" + papers_table([result["task"] for result in results]))
    return results


def load_task(task: Task, config: TrainConfig) -> Loaded:
    """Reads a task, and names the rows that cannot be asked."""
    loaded = task.load(config)
    rows = len(loaded.questions) + loaded.num_missing
    say(f"{task.name}: {min(config.evaluate.limit or rows, rows):,} of {rows:,} questions")
    if loaded.problems:
        head = f"  {len(loaded.problems)} rows cannot be asked; results.json names each"
        say("\n".join([head, *problem_lines(loaded.problems)]))
    return loaded


def _evaluate_task(
    task: Task, config: TrainConfig, loaded: Loaded, load_model: Callable[[], Model], folder: Path
) -> dict[str, Any] | None:
    questions, num_missing = draw(loaded, config.evaluate.limit, config.seed)
    if not questions:
        raise UsageError(f"task {task.name}: evaluate.limit={config.evaluate.limit} drew only rows with a missing film")
    ids = [question.sample.id for question in questions]
    path = folder / "results.json"
    stored = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    if stored is not None and stored["ids_hash"] != ids_hash(ids):
        raise UsageError(f"{path} is of other questions of a task {task.name}; give another output_dir")
    swaps = config.evaluate.evidence == "swap"
    runs = [TaskRun(task, config, questions, folder)]
    runs += [TaskRun(task, config, questions, folder / "swapped", swap=True)] if swaps else []
    pending = [(run, run.pending()) for run in runs]
    barrier()  # every rank has read the files before rank 0 writes
    for run, open_questions in pending:
        if open_questions:
            run.ask(load_model(), open_questions)
    num_open = [len(set(ids) - read_answers(run.folder).keys()) for run in runs]
    barrier()
    if any(num_open):
        say(f"{task.name}: {sum(num_open):,} answers are open, of other shards; {folder} has no results yet")
        return None
    if rank() != 0:
        return None
    if stored is not None and not any(open_questions for _, open_questions in pending):
        say(f"{task.name}: all {len(ids):,} questions are answered already; nothing was added to {folder}")
        return dict(stored)
    lines = merge_answers(folder, ids)
    swapped = merge_answers(folder / "swapped", ids) if swaps else []
    result = results_of(task, config, loaded, lines, num_missing)
    result["usage"] = bill([*lines, *swapped], config.evaluate)
    if task.question_only is not None:
        other = folder.parent / task.question_only / "results.json"
        result["values"] |= gain_of_knowledge(result, other)
    if swaps:
        result["necessity"] = necessity(result, swapped)
    write_json(path, result)
    say(f"{task.name}: {path}")
    return result


def necessity(result: dict[str, Any], swapped: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Returns the accuracy with swapped crops, and the drop: large for answers that rest on the crops' pixels."""
    scores = [outcome.score for outcome in outcomes_of(swapped)]
    accuracy = sum(scores) / len(scores)
    return {"accuracy_swapped": accuracy, "drop": result["values"]["accuracy"] - accuracy}


def run_folder(config: TrainConfig, model_folder: Path | None, output_dir: Path) -> Path:
    """Returns OUTPUT/MODEL/MODE-HASH for a configuration and a folder of weights, or None for an endpoint's model."""
    keys = config_keys(config)
    names = (*_DECIDING, *(_DECIDING_REMOTE if model_folder is None else ()))
    settings = config.video.shown_by() | {name: keys[name].value for name in names}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for path in sorted(model_folder.glob("*.safetensors")) if model_folder is not None else ():
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for offset in range(0, size, 2**20):
                file.seek(offset)
                digest.update(file.read(2**20 if size <= _WHOLE_BYTES else 4096))
    name = "_".join(part for part in Path(config.model).parts if part not in ("/", ".."))
    return output_dir / name / f"{config.evaluate.mode}-{digest.hexdigest()[:8]}"

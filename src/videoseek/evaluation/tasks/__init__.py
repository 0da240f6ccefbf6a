"""The benchmarks by name, one small file each."""

from __future__ import annotations

import re
from pathlib import Path

from videoseek.config import EvaluateConfig, UsageError
from videoseek.evaluation.answers import parse_shard
from videoseek.evaluation.judge import check_judge
from videoseek.evaluation.tasks import (
    charades,
    longvideobench,
    lvbench,
    mlvu,
    mmvu,
    video_holmes,
    videomme,
    videomme_v2,
    videommmu,
    videosiah,
)
from videoseek.evaluation.tasks.own import SourceTask
from videoseek.evaluation.tasks.task import Task
from videoseek.samples.sources import GENERATED, parse_source
from videoseek.user_code import load_member

_FILES = (videomme, videomme_v2, mlvu, lvbench, longvideobench, videommmu, mmvu, video_holmes, videosiah, charades)
TASKS: dict[str, Task] = {task.name: task for task in (*(file.TASK for file in _FILES), videommmu.QUESTION_ONLY)}


def find_tasks(evaluate: EvaluateConfig) -> list[Task]:
    """Returns the tasks of a configuration. Raises UsageError for every fault that shows without torch or a model."""
    parse_shard(evaluate.shard)
    if evaluate.judge is not None:
        check_judge(evaluate)
    tool_keys = {"evidence=swap": evaluate.evidence == "swap", "final_answer=true": evaluate.final_answer}
    tool_keys |= {"subtitles=window": evaluate.subtitles == "window"}
    for key, is_set in tool_keys.items():
        if is_set and evaluate.mode != "tool":
            raise UsageError(f"evaluate.{key} acts on crops; evaluate.mode={evaluate.mode} makes none")
    tasks = [find_task(name) for name in evaluate.tasks]
    if len({task.name for task in tasks}) < len(tasks):
        raise UsageError(f"evaluate.tasks names a task twice: {', '.join(task.name for task in tasks)}")
    for task in tasks:
        if type(task) is Task:  # other kinds have files of their own
            task.find_files(evaluate.data_root)
    return tasks


def find_task(name: str) -> Task:
    """Returns a task: by name, as `FILE.py:NAME`, or a data source as in `data.eval`. Raises UsageError."""
    if name in TASKS:
        return TASKS[name]
    if name.rpartition(":")[0].endswith(".py"):
        return _load_task(name)
    source = parse_source(name)
    if source.is_generated or Path(source.name).is_file():
        label = re.sub(r"[^\w.-]+", "_", name).strip("_")
        return SourceTask(name=label, citation="the user's questions", files=(name,))
    raise UsageError(
        f"task {name!r} is none of {', '.join([*TASKS, *GENERATED])}, no existing data file and no FILE.py:NAME"
    )


def _load_task(spec: str) -> Task:
    """Returns a task of the user's own file. Raises UsageError."""
    task = load_member(spec, "task")
    if not isinstance(task, Task):
        raise UsageError(f"task {spec} is a {type(task).__name__}, no videoseek.evaluation.tasks.task.Task")
    return task

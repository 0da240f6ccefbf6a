"""Runs the real command within seconds: tests start, watch, stop and read the command like a user."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from videoseek.command import run_command
from videoseek.train import main

ROOT = Path(__file__).parents[2]
TRAIN = [sys.executable, "-m", "videoseek.train"]
TWO_RANKS = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
TWO_RANKS += ["videoseek.train"]

#: Variables that make a process a member of a group.
GROUP = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

#: Steps of every stage, a checkpoint at every second step; `direct` takes seven.
TINY = (
    "recipe=sft_rl sft.steps=4 sft.samples_per_step=6 sft.warmup_steps=1 sft.learning_rate=1e-3 tdam.share=0.5 "
    "grpo.steps=3 grpo.prompts_per_step=2 grpo.group_size=3 grpo.warmup_steps=1 grpo.overlong=keep "
    "rollout.max_new_tokens_per_turn=12 rollout.max_turns=4 rollout.temperature=2 "
    "data.sft=[clueworld:12] data.rl=[clueworld:12] data.eval=[clueworld:4] "
    "evaluate.num_questions=4 evaluate.samples=1 save_every_steps=2"
)

#: Tells almost any two episodes apart: at a high temperature, even a bad model has something to learn.
REWARD = """
def by_ids(completion_ids, **kwargs):
    return [sum(ids) % 97 / 96 for ids in completion_ids]
"""


def environment(**variables: str) -> dict[str, str]:
    path = os.pathsep.join(str(ROOT / name) for name in ("src", "kernels"))
    # A test of the engine in this process leaves the address of its own group behind.
    inherited = {name: value for name, value in os.environ.items() if name not in GROUP}
    return {**inherited, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **variables}


def start(arguments: list[str], *, launcher: list[str] = TRAIN, **variables: str) -> subprocess.Popen[str]:
    """Starts the command with `variables` added to the environment."""
    return subprocess.Popen(
        [*launcher, *arguments],
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=_answer_ctrl_c,
    )


def _answer_ctrl_c() -> None:
    """Restores SIGINT: background processes of a shell ignore the signal, and pass this on to child processes."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    """Returns the command's output after an exit with `code`."""
    said, _ = process.communicate()
    assert process.returncode == code, said
    return said


def run(arguments: list[str], code: int = 0, launcher: list[str] = TRAIN) -> str:
    return finish(start(arguments, launcher=launcher), code)


def stop(process: subprocess.Popen[str], when: Callable[[], bool], how: signal.Signals = signal.SIGKILL) -> None:
    """Runs the command until `when` holds, then sends the signal `how`. SIGINT is Ctrl-C: the command ends itself."""
    while not when():
        assert process.poll() is None, f"ended by itself: {process.communicate()[0]}"
        time.sleep(0.002)
    process.send_signal(how)
    said = finish(process, 130 if how == signal.SIGINT else -how)
    assert how != signal.SIGINT or said.endswith("videoseek: interrupted\n"), said


def rows(output_dir: Path) -> list[dict[str, Any]]:
    """Returns the whole lines of metrics.jsonl."""
    path = output_dir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []


def curve(output_dir: Path, name: str, stage: str) -> list[float]:
    return [row[name] for row in rows(output_dir) if row["stage"] == stage]


def reached(output_dir: Path, stage: str, step: int) -> Callable[[], bool]:
    return lambda: any((row["stage"], row["step"]) == (stage, step) for row in rows(output_dir))


def numbers(output_dir: Path) -> list[dict[str, Any]]:
    """Returns the metrics of a run without times."""
    return [
        {name: value for name, value in row.items() if not name.startswith(("time/", "perf/", "step_time"))}
        for row in rows(output_dir)
    ]


def summary(output_dir: Path) -> dict[str, Any]:
    content = json.loads((output_dir / "summary.json").read_text())
    return {name: value for name, value in content.items() if name != "wall_seconds"}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted(folder.glob("*.safetensors"))
    return {name: tensor for path in files for name, tensor in load(path.read_bytes()).items()}


def _forked(arguments: list[str], said: str, file_size_limit: int | None, prepare: Callable[[], None] | None) -> None:
    log = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if file_size_limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size_limit, file_size_limit))
    if prepare is not None:
        prepare()
    raise SystemExit(run_command(main, arguments))


def forked(
    arguments: list[str],
    folder: Path,
    code: int = 0,
    file_size_limit: int | None = None,
    prepare: Callable[[], None] | None = None,
) -> str:
    """Does `run` in a process with finished imports, for many short runs, under a limit of each file's bytes.

    The process calls `prepare` first.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["videoseek.stages.pipeline"])
    log = folder / "said.txt"
    process = context.Process(target=_forked, args=(arguments, str(log), file_size_limit, prepare))
    with pytest.MonkeyPatch.context() as patch:
        for name in GROUP:
            patch.delenv(name, raising=False)
        for name, value in environment().items():  # the first start starts the server, which keeps its environment
            patch.setenv(name, value)
        process.start()
    process.join()
    said = log.read_text()
    assert process.exitcode == code, said
    return said


def refused(arguments: list[str], folder: Path, code: int) -> str:
    """Returns the sentence of the command's refusal to run."""
    said = forked(arguments, folder, code)
    sentence = said.splitlines()[-1]
    assert "Traceback" not in said
    assert sentence.startswith("videoseek: ")
    return sentence.removeprefix("videoseek: ")

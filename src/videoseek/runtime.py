"""What a run needs around the learning: seeds, device, ranks, output folder, metrics, progress, versions used."""

from __future__ import annotations

import gc
import importlib.metadata
import json
import math
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import rich.progress
import torch
from rich.console import Console

from videoseek.config import UsageError

PACKAGES = ("torch", "transformers", "deepspeed", "triton", "av", "numpy", "omegaconf", "safetensors", "tokenizers")


class RunError(Exception):
    """What the run keeps or finds in its output folder is of no use: one sentence, exit code 1."""


def rank() -> int:
    """This process among all of the run (RANK of torchrun and the deepspeed launcher; 0 alone)."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """This process among those of its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def world_size() -> int:
    """Number of processes of the run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def seed_everything(seed: int) -> None:
    """Seed python, numpy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def choose_device(name: str) -> torch.device:
    """`auto` is this process's GPU where there is one, else the CPU; `cuda` without a GPU raises UsageError."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("device=cuda, but torch sees no GPU; use device=cpu or device=auto")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", local_rank())


def choose_accelerator(name: str) -> None:
    """Tells DeepSpeed the device before it is imported; it warns when it has to guess a CPU."""
    if choose_device(name).type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def free_memory() -> None:
    """Hands back what nothing refers to any more: cycles of references (model classes are full of them), then the
    blocks that torch keeps on the GPU for its next tensors."""
    gc.collect()
    torch.cuda.empty_cache()


def choose_dtype(name: str) -> torch.dtype:
    """The torch type of a `dtype` key."""
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def prepare_output_dir(path: str | Path) -> Path:
    """Make the folder and prove that files can be written to it; UsageError before any work if not."""
    folder = Path(path).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"\0")
    except OSError as error:
        raise UsageError(f"output_dir {folder} cannot be written to: {error.strerror}") from error
    return folder


def write_text_atomic(path: Path, text: str) -> None:
    """Write to a temporary name in the same folder, then rename: readers see the old file or the new one, whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json_atomic(path: Path, value: Any) -> None:
    """Indented JSON by `write_text_atomic`; NaN and infinity, which JSON lacks, raise ValueError."""
    write_text_atomic(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def environment_report() -> dict[str, Any]:
    """What the run ran on, for env.json: versions, machine, devices, revision of the source tree, command line."""
    versions: dict[str, str | None] = {}
    for package in ("videoseek", *PACKAGES):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
        "cuda": torch.version.cuda,
        "devices": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "num_cpus": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "world_size": world_size(),
        "revision": _source_revision(),
        "command": list(sys.argv),
    }


def _source_revision() -> str | None:
    """Commit of the source tree this file lies in, `-dirty` if it was changed; None once installed elsewhere."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows of a metrics.jsonl. A last line without its newline was cut off by a kill and is left out."""
    if not path.exists():
        return []
    *lines, _torn = path.read_text(encoding="utf-8", errors="replace").split("\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise RunError(f"{path} line {number} is not JSON: {error}") from error
    return rows


class MetricsLog:
    """One JSON object a step in metrics.jsonl, and the same numbers in tensorboard/STAGE; only rank 0 writes.

    `stages` is the run's order. `resume` is the (stage, step) that a checkpoint stands at: rows beyond it are
    dropped, since they will be made again; without it the log starts empty.
    """

    def __init__(self, output_dir: Path, stages: Sequence[str], resume: tuple[str, int] | None = None) -> None:
        self._output_dir, self._resume = output_dir, resume
        self._writers: dict[str, Any] = {}
        self._enabled = rank() == 0
        if not self._enabled:
            return
        path = output_dir / "metrics.jsonl"
        rows = []
        if resume is not None:
            order = {stage: index for index, stage in enumerate(stages)}
            limit = order[resume[0]], resume[1]
            rows = [row for row in read_metrics(path) if (order.get(row["stage"], -1), row["step"]) <= limit]
        write_text_atomic(path, "".join(json.dumps(row) + "\n" for row in rows))
        # Unbuffered: a line reaches the system in one call, so that a killed process can tear only the last one.
        self._file = path.open("ab", buffering=0)

    def write(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Log numbers by name. JSON has no NaN and no infinity: they are written as null."""
        if not self._enabled:
            return
        numbers = {name: float(value) for name, value in values.items()}
        finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        self._file.write((json.dumps({"stage": stage, "step": step, **finite}) + "\n").encode())
        writer = self._writer(stage)
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)

    def _writer(self, stage: str) -> Any:
        """One event folder per stage, which hides the events that an interrupted run left beyond the resume step."""
        if stage not in self._writers:
            from torch.utils.tensorboard import SummaryWriter

            first_step = self._resume[1] + 1 if self._resume and self._resume[0] == stage else 0
            folder = self._output_dir / "tensorboard" / stage
            self._writers[stage] = SummaryWriter(str(folder), purge_step=first_step)
        return self._writers[stage]

    def close(self) -> None:
        if self._enabled:
            self._file.close()
        for writer in self._writers.values():
            writer.close()


class Progress:
    """Live progress of one stage on stderr: a bar on a terminal, else a line every few seconds; rank 0 only.

    Shows stage, step of total, the given numbers and the time left, reckoned from the steps done since `first_step`.
    """

    def __init__(self, stage: str, total: int, first_step: int = 0, every_seconds: float = 5.0) -> None:
        self._stage, self._total, self._first_step = stage, total, first_step
        self._every_seconds = every_seconds
        self._enabled = rank() == 0
        self._console = Console(stderr=True, highlight=False)
        self._started = self._shown = time.monotonic()
        self._bar: rich.progress.Progress | None = None

    def __enter__(self) -> Progress:
        if self._enabled and self._console.is_terminal:
            self._bar = rich.progress.Progress(
                "{task.description}",
                rich.progress.BarColumn(),
                rich.progress.MofNCompleteColumn(),
                "{task.fields[numbers]}",
                rich.progress.TimeRemainingColumn(elapsed_when_finished=True),
                console=self._console,
            )
            self._bar.start()
            self._bar.add_task(self._stage, total=self._total, completed=self._first_step, numbers="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def track(self, done: int, total: int) -> None:
        """`done` of `total` units are done, for work that learns its own extent."""
        self._total = total
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], total=total)
        self.update(done, {})

    def update(self, step: int, values: Mapping[str, float]) -> None:
        """`step` steps are done; `values` are the numbers to show beside it."""
        numbers = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step, numbers=numbers)
            return
        now = time.monotonic()
        due = step >= self._total or step == self._first_step + 1 or now - self._shown >= self._every_seconds
        if self._enabled and due:
            self._shown = now
            left = (now - self._started) / max(step - self._first_step, 1) * (self._total - step)
            minutes, seconds = divmod(round(left), 60)
            line = f"{self._stage} {step}/{self._total}  {numbers}  {minutes}:{seconds:02d} left"
            print(line, file=sys.stderr, flush=True)

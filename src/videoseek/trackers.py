"""Experiment trackers beside metrics.jsonl, each selected by name in the key `tracker`.

A tracker receives numbers and the configuration only: no environment, command line, git remote, code or console output
(keys may stand there). Numbers stay on this machine unless the user's environment sends the numbers elsewhere:
WANDB_MODE=online, SWANLAB_MODE=online, TRACKIO_SPACE_ID or TRACKIO_SERVER_URL.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from videoseek.config import TrainConfig, UsageError
from videoseek.files import write_text
from videoseek.runtime import rank

logger = logging.getLogger(__name__)

_ID_FILE = "tracker_run_id"
_SECRET_NAMES = ("KEY", "TOKEN", "SECRET", "PASSWORD")


class Tracker(Protocol):
    """A consumer of a run's numbers. Steps count from 1 in every stage."""

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """A run for trackers. `resume` is the (stage, step) of the resumed checkpoint.

    `run_id` stays the same after a resume: trackers continue the same run.
    """

    output_dir: Path
    config: Mapping[str, Any]
    run_id: str
    resume: tuple[str, int] | None

    @property
    def project(self) -> str:
        """Returns the name of the folder around the output folder."""
        return _plain(self.output_dir.resolve().parent.name)

    @property
    def name(self) -> str:
        """Returns the name of the output folder."""
        return _plain(self.output_dir.resolve().name)


class _TensorBoard:
    """Writes an event folder per stage, and hides events of an interrupted run beyond the resume step."""

    def __init__(self, run: TrackedRun) -> None:
        self._run = run
        self._writers: dict[str, Any] = {}

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        writer = self._writer(stage)
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    def _writer(self, stage: str) -> Any:
        if stage not in self._writers:
            from torch.utils.tensorboard import SummaryWriter

            resume = self._run.resume
            first_step = resume[1] + 1 if resume and resume[0] == stage else 0
            folder = self._run.output_dir / "tensorboard" / stage
            self._writers[stage] = SummaryWriter(str(folder), purge_step=first_step)
        return self._writers[stage]

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()


class _Wandb:
    """Writes to OUTPUT_DIR/wandb, for `wandb sync`, or to the server under WANDB_MODE=online."""

    def __init__(self, run: TrackedRun) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # offline mode would still send crash reports
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", run.project),
            name=os.environ.get("WANDB_NAME", run.name),
            id=run.run_id,
            resume="allow",
            dir=run.output_dir,
            mode=os.environ.get("WANDB_MODE", "offline"),
            config=dict(run.config),
            settings=wandb.Settings(console="off", disable_git=True, disable_code=True, x_disable_meta=True),
        )
        self._stages: set[str] = set()

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        # wandb has one step counter per run: each stage gets its own axis.
        if stage not in self._stages:
            self._stages.add(stage)
            self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        self._run.log({f"{stage}/step": step, **_by_stage(stage, values)})

    def close(self) -> None:
        self._run.finish()


class _Trackio:
    """Writes to the SQLite file in OUTPUT_DIR/trackio, or to the user's folder TRACKIO_DIR."""

    def __init__(self, run: TrackedRun) -> None:
        os.environ.setdefault("TRACKIO_DIR", str(run.output_dir / "trackio"))  # trackio reads the variable at import
        import trackio

        # trackio finds a run by name alone, and another run in TRACKIO_DIR may have the same name.
        name = f"{run.name}-{run.run_id}"
        self._run = trackio.init(run.project, name=name, resume="allow", config=dict(run.config), embed=False)

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        self._run.log(_by_stage(stage, values), step=step)

    def close(self) -> None:
        self._run.finish()


class _SwanLab:
    """Writes to OUTPUT_DIR/swanlab, for `swanlab sync`, or to the server under SWANLAB_MODE=online."""

    def __init__(self, run: TrackedRun) -> None:
        import swanlab

        nothing = swanlab.Settings.Probe(runtime=False, requirements=False, git=False)
        self._run = swanlab.init(
            project=os.environ.get("SWANLAB_PROJ_NAME", run.project),
            name=os.environ.get("SWANLAB_EXP_NAME", run.name),
            id=run.run_id,
            resume="allow",
            log_dir=str(run.output_dir / "swanlab"),
            mode=os.environ.get("SWANLAB_MODE", "offline"),
            config=dict(run.config),
            settings=swanlab.Settings(probe=nothing, terminal=swanlab.Settings.Terminal(proxy_type="none")),
        )

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        self._run.log(_by_stage(stage, values), step=step)

    def close(self) -> None:
        self._run.finish()


_TRACKERS: dict[str, Callable[[TrackedRun], Tracker]] = {
    "tensorboard": _TensorBoard,
    "wandb": _Wandb,
    "trackio": _Trackio,
    "swanlab": _SwanLab,
}


class _Unfailing:
    """Hands numbers to a tracker until its first failure, then drops the tracker: a tracker never ends a run.

    Logs a failure at the start, in a step or at the end once. metrics.jsonl has the numbers in any case.
    """

    def __init__(self, name: str, run: TrackedRun) -> None:
        self._name = name
        self._tracker: Tracker | None = None
        self._attempt(lambda: setattr(self, "_tracker", _TRACKERS[name](run)))

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        tracker = self._tracker
        if tracker is not None:
            self._attempt(lambda: tracker.log(stage, step, values))

    def close(self) -> None:
        if self._tracker is not None:
            self._attempt(self._tracker.close)

    def _attempt(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # of any class, from another project's code or server
            self._tracker = None
            reason = _without_secrets(f"{type(error).__name__}: {error}".splitlines()[0])
            logger.warning("the run goes on without the tracker %s, which failed: %s", self._name, reason)


def check_trackers(names: Sequence[str]) -> None:
    """Raises UsageError for a tracker without its package."""
    for name in names:
        spec = find_spec(name)
        if spec is None or spec.origin is None:  # a folder `wandb` of earlier runs has no origin
            raise UsageError(
                f"tracker={name} needs the package {name}, which is not installed: pip install 'videoseek[trackers]'"
            )


def open_trackers(config: TrainConfig, output_dir: Path, resume: tuple[str, int] | None = None) -> list[Tracker]:
    """Opens the trackers of `config.tracker` on rank 0. Other ranks have none.

    `resume` is the (stage, step) of the resumed checkpoint. Repeated steps appear twice in append-only trackers, with
    the same numbers: the killed process may have lost the last numbers before a tracker stored them.
    """
    if rank() != 0 or not config.tracker:
        return []
    id_file = output_dir / _ID_FILE
    if not id_file.is_file():
        write_text(id_file, uuid.uuid4().hex[:12] + "\n")
    run_id = id_file.read_text(encoding="utf-8").strip()
    run = TrackedRun(output_dir, dataclasses.asdict(config), run_id, resume)
    return [_Unfailing(name, run) for name in dict.fromkeys(config.tracker)]


def _by_stage(stage: str, values: Mapping[str, float]) -> dict[str, float]:
    return {f"{stage}/{name}": value for name, value in values.items()}


def _plain(name: str) -> str:
    """Returns a name of characters accepted by every tracker."""
    return re.sub(r"[^0-9A-Za-z_.-]", "-", name) or "videoseek"


def _without_secrets(text: str) -> str:
    """Replaces the values of environment variables with key-like names by ***."""
    for name, value in os.environ.items():
        if name.endswith(_SECRET_NAMES) and value:
            text = text.replace(value, "***")
    return text

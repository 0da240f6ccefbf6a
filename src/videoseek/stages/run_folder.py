"""The start of a run: its output folder, its device and its processes."""

from __future__ import annotations

import os
from pathlib import Path

from videoseek.attempts import start_attempt
from videoseek.checkpoint import (
    CheckpointError,
    TrainerState,
    discard_after,
    discard_stage,
    link,
    mark_best,
    read_state,
)
from videoseek.config import TrainConfig
from videoseek.config_merge import config_yaml
from videoseek.distributed import check_shared, choose_device, choose_threads, environment_report, seed_everything
from videoseek.engine import start_distributed
from videoseek.files import hold_folder, prepare_output_dir, remove_leftovers, write_text
from videoseek.runtime import num_local_ranks, say
from videoseek.stages.stage_run import RunContext
from videoseek.video.service import start_video_service


def start_run(config: TrainConfig) -> RunContext:
    """Creates the run's folder, device and processes, and fixes the seeds."""
    context = RunContext(config, prepare_output_dir(config.output_dir), choose_device(config.device))
    choose_threads(context.device, context.output_dir / "env.json" if config.resume != "no" else None)
    seed_everything(config.seed)
    start_distributed(context.device)
    check_shared(context.output_dir)
    start_video_service(config.video, num_local_ranks())
    return context


def start_folder(config: TrainConfig, output_dir: Path) -> None:
    """Moves an earlier run aside unless the run resumes, and records the new run's identity.

    Raises UsageError while another process works in the folder, and CheckpointError for a foreign checkpoint.
    """
    point = Path(config.resume) if config.resume not in ("no", "auto") else None
    state = rewind_state(config, output_dir, point) if point is not None else None
    lock = hold_folder(output_dir)
    if point is not None and state is not None:
        rewind(config, output_dir, point, state)
    if config.resume == "no" and (output_dir / "config.yaml").exists():
        number = 1
        while (aside := output_dir.with_name(f"{output_dir.name}.old-{number}")).exists():
            number += 1
        output_dir.replace(aside)
        output_dir.mkdir()
        hold_folder(output_dir)
        os.close(lock)  # it moved with the earlier run
        say(f"  an earlier run was moved to {aside}")
    for folder in (output_dir, output_dir / "trajectories"):
        remove_leftovers(folder, "*")  # of killed processes: the lock excludes other ones
    for name in ("summary.json", "report.html"):  # they tell of a finished run, and this run goes on
        (output_dir / name).unlink(missing_ok=True)
    write_text(output_dir / "config.yaml", config_yaml(config))
    start_attempt(output_dir, environment_report())


def rewind_state(config: TrainConfig, output_dir: Path, checkpoint: Path) -> TrainerState:
    """Returns the progress of the checkpoint to rewind to. Raises CheckpointError for a checkpoint of another run."""
    state = read_state(checkpoint)
    if checkpoint.resolve().parent != output_dir.resolve() or state.stage not in config.stages:
        raise CheckpointError(
            f"resume={checkpoint} is no checkpoint of a stage {' or '.join(config.stages)} in output_dir {output_dir}; "
            f"model={checkpoint} takes its weights only"
        )
    return state


def rewind(config: TrainConfig, output_dir: Path, checkpoint: Path, state: TrainerState) -> None:
    """Rewinds a run to one of its checkpoints. The run repeats all later steps."""
    checkpoint = checkpoint.resolve()  # `last` is a link
    discard_after(checkpoint)
    link(output_dir / "last", checkpoint)
    for stage in config.stages[config.stages.index(state.stage) :]:
        mark_best(output_dir, stage, state.best if stage == state.stage else None)
        (output_dir / f"evaluation-{stage}.json").unlink(missing_ok=True)
        discard_stage(output_dir / stage)

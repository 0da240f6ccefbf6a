"""The start of a run: its output folder, its device and its processes."""

from __future__ import annotations

from pathlib import Path

from videoseek.checkpoint import CheckpointError, discard_after, discard_stage, read_state
from videoseek.config import TrainConfig
from videoseek.config_merge import config_yaml
from videoseek.distributed import check_shared, choose_device, choose_threads, environment_report, seed_everything
from videoseek.engine import start_distributed
from videoseek.files import prepare_output_dir, write_json, write_text
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
    """Moves an earlier run aside unless the run resumes, and records the new run's identity."""
    if config.resume not in ("no", "auto"):
        rewind(config, output_dir, Path(config.resume))
    if config.resume == "no" and (output_dir / "config.yaml").exists():
        number = 1
        while (aside := output_dir.with_name(f"{output_dir.name}.old-{number}")).exists():
            number += 1
        output_dir.replace(aside)
        output_dir.mkdir()
        say(f"  an earlier run was moved to {aside}")
    for name in ("summary.json", "report.html"):  # they tell of a finished run, and this run goes on
        (output_dir / name).unlink(missing_ok=True)
    write_text(output_dir / "config.yaml", config_yaml(config))
    write_json(output_dir / "env.json", environment_report())


def rewind(config: TrainConfig, output_dir: Path, checkpoint: Path) -> None:
    """Rewinds a run to one of its checkpoints. The run repeats all later steps."""
    state = read_state(checkpoint)
    if checkpoint.resolve().parent != output_dir.resolve() or state.stage not in config.stages:
        raise CheckpointError(
            f"resume={checkpoint} is no checkpoint of a stage {' or '.join(config.stages)} in output_dir {output_dir}; "
            f"model={checkpoint} takes its weights only"
        )
    discard_after(checkpoint)
    for stage in config.stages[config.stages.index(state.stage) :]:
        (output_dir / f"evaluation-{stage}.json").unlink(missing_ok=True)
        discard_stage(output_dir / stage)

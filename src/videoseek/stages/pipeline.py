"""A run from its configuration to its report: data, then each stage and its scores, then the summary.

output_dir/
    config.yaml  env.json  metrics.jsonl  tensorboard/  trajectories/
    checkpoint-N/       resumable, N optimizer steps over all stages;  last -> the newest;  best.json
    direct/ sft/ grpo/  finished stages as Hugging Face folders;       final -> the last of them
    evaluation-*.json  summary.json  report.html
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from videoseek.attempts import end_attempt
from videoseek.batches.order import SampleOrder
from videoseek.checkpoint import CheckpointWriter, is_complete, link, read_state
from videoseek.config import TrainConfig, UsageError, stage_steps
from videoseek.distributed import barrier, free_memory
from videoseek.engine import TrainEngine, end_distributed
from videoseek.evaluation.model_scores import score_model
from videoseek.evaluation.scores import summary_of
from videoseek.files import write_json
from videoseek.metrics import MetricsLog
from videoseek.model.adapters import check_peft
from videoseek.model.load import model_folder, save_pretrained
from videoseek.model.tiny import build_model, build_tokenizer, tiny_config
from videoseek.pages.model_card import write_model_card
from videoseek.pages.report import write_report
from videoseek.rewards.functions import RewardFunction, load_reward_functions
from videoseek.rollout.vllm import check_vllm
from videoseek.runtime import rank, say, world_size
from videoseek.samples.clueworld import phrases
from videoseek.stages.dry_run import dry_run
from videoseek.stages.grpo import train_grpo
from videoseek.stages.loading import Data, load_data
from videoseek.stages.run_folder import start_folder, start_run
from videoseek.stages.sft import train_sft
from videoseek.stages.stage_run import RunContext, StageRun, find_resume_point
from videoseek.trackers import check_trackers, open_trackers
from videoseek.types import Sample

#: The name of each stage's model in summary and report.
MODEL_NAMES = {"direct": "direct", "sft": "sft", "grpo": "sft_rl"}


def run(config: TrainConfig, *, only_plan: bool) -> None:
    """Runs all stages, or checks data and one batch with `only_plan`. Raises the package's own errors."""
    started = time.monotonic()
    context = start_run(config)
    output_dir = context.output_dir
    # All checks come before the first change in the output folder.
    check_batches(config)
    check_masters(config)
    check_evaluation(config)
    if config.resume == "auto" and not only_plan and is_finished(config, output_dir):
        say(f"{output_dir} is finished; nothing was changed. resume=no starts the run anew")
        end_distributed()
        return
    check_peft(config.lora)
    check_trackers(config.tracker)
    if "grpo" in config.stages and config.rollout.engine == "vllm":
        check_vllm(config, config.position_rule)
    if config.model != "scratch":
        model_folder(config.model)
    functions = load_reward_functions(config.reward.functions) if "grpo" in config.stages else []
    data = load_data(config)
    if only_plan:
        say(dry_run(context, start_weights(config, output_dir), data.sft or data.rl))
        end_distributed()
        return
    if rank() == 0:
        start_folder(config, output_dir)
        data.write_bad(output_dir)
    barrier()
    run_stages(context, start_weights(config, output_dir), data, functions)
    if rank() == 0:
        write_summary(config, output_dir, end_attempt(output_dir, time.monotonic() - started))
        say(f"report: {write_report(output_dir)}")
        say(f"next: python -m videoseek.ask VIDEO QUESTION model={output_dir / 'final'}")
    end_distributed()


def is_finished(config: TrainConfig, output_dir: Path) -> bool:
    """Returns whether every stage is complete and scored, and the report is written."""
    scores = [f"evaluation-{stage}.json" for stage in config.stages if config.data.eval]
    files = [output_dir / name for name in ("summary.json", "report.html", *scores)]
    return all(is_complete(output_dir / stage) for stage in config.stages) and all(map(Path.is_file, files))


def check_batches(config: TrainConfig) -> None:
    """Raises UsageError when a batch is smaller than the number of ranks."""
    sizes = {"grpo.prompts_per_step": config.grpo.prompts_per_step} if "grpo" in config.stages else {}
    if {"direct", "sft"} & set(config.stages):
        sizes["sft.samples_per_step"] = config.sft.samples_per_step
    for name, size in sizes.items():
        if size < world_size():
            raise UsageError(f"{name} {size} is less than the run's {world_size()} ranks; each needs one at least")


def check_masters(config: TrainConfig) -> None:
    """Raises UsageError for 16-bit weights without fp32 master copies."""
    if config.dtype == "bfloat16" and config.deepspeed.stage == 0:
        raise UsageError(
            "dtype=bfloat16 needs a deepspeed.stage of 1 or more, which trains float32 copies of the weights; "
            "with stage 0 small updates would be rounded away"
        )


def check_evaluation(config: TrainConfig) -> None:
    """Raises UsageError for evaluations within a stage without held-out questions."""
    if config.evaluate.every_steps is not None and not config.data.eval:
        raise UsageError(
            f"evaluate.every_steps={config.evaluate.every_steps} needs held-out questions; data.eval names none"
        )


def start_weights(config: TrainConfig, output_dir: Path) -> Path:
    """Returns the model folder at the start of the run. Writes random weights from the seed first for `scratch`."""
    if config.model != "scratch":
        return model_folder(config.model)
    folder = output_dir / "scratch"
    if rank() == 0:
        tokenizer = build_tokenizer(phrases())
        save_pretrained(build_model(tiny_config(tokenizer), config.seed), tokenizer, folder)
    barrier()
    return folder


def without_tool(sample: Sample) -> Sample:
    """Returns the sample with the answering turn only, for the stage `direct`."""
    return replace(sample, turns=sample.turns[-1:])


def run_stages(context: RunContext, source: Path, data: Data, functions: Sequence[RewardFunction]) -> None:
    """Trains each stage from the weights of its source or from its checkpoint, and scores each finished stage."""
    config, output_dir = context.config, context.output_dir
    points = {stage: find_resume_point(output_dir, stage) for stage in config.stages}
    resume = _logged_so_far(config, output_dir, points)
    metrics = MetricsLog(output_dir, config.stages, resume, open_trackers(config, output_dir, resume))
    writer = CheckpointWriter(in_background=config.save_in_background)
    questions = questions_inside(config, data.held_out)
    done = 0
    for stage in config.stages:
        folder = output_dir / stage
        stage_source = output_dir / "sft" if stage == "grpo" and "sft" in config.stages else source
        if not is_complete(folder):
            run = StageRun.open(context, stage, stage_source, metrics, writer, questions, done, points[stage])
            engine = train_stage(run, data, functions)
            run.finish(engine, folder)
            engine.release()
            del engine, run
            free_memory()
        if data.held_out and not (output_dir / f"evaluation-{stage}.json").is_file():
            score_stage(context, stage, data.held_out)
            free_memory()
        if rank() == 0:
            write_model_card(folder, config, stage, output_dir / f"evaluation-{stage}.json")
        done += stage_steps(config, stage)
    if rank() == 0:
        link(output_dir / "final", output_dir / config.stages[-1])
    metrics.close()


def questions_inside(config: TrainConfig, held_out: list[Sample]) -> list[Sample]:
    """Returns the held-out questions of evaluations within a stage, in the order of `held_out`."""
    count = min(config.evaluate.num_questions_inside or len(held_out), len(held_out))
    return [held_out[i] for i in sorted(SampleOrder.of(held_out, config.seed, by_film=False).batch(0, count))]


def train_stage(run: StageRun, data: Data, functions: Sequence[RewardFunction]) -> TrainEngine:
    if run.name == "grpo":
        return train_grpo(run, data.rl, functions)
    samples = [without_tool(sample) for sample in data.sft] if run.name == "direct" else data.sft
    return train_sft(run, samples, steps=stage_steps(run.config, run.name))


def _logged_so_far(config: TrainConfig, output_dir: Path, points: dict[str, Path | None]) -> tuple[str, int] | None:
    """Returns the last stage and step whose metrics stay: of finished stages, or of the next stage's checkpoint."""
    reached = None
    for stage in config.stages:
        if is_complete(output_dir / stage):
            reached = (stage, stage_steps(config, stage))
            continue
        point = points[stage]
        return (stage, read_state(point).step) if point is not None else reached
    return reached


def score_stage(context: RunContext, stage: str, samples: list[Sample]) -> None:
    """Answers the held-out questions with a finished stage's weights, and writes the scores."""
    values = score_model(
        context.config, context.device, context.output_dir / stage, MODEL_NAMES[stage], samples, context.output_dir
    )
    if rank() == 0:
        write_json(context.output_dir / f"evaluation-{stage}.json", values)
    barrier()


def write_summary(config: TrainConfig, output_dir: Path, seconds: float) -> None:
    """Writes summary.json: scores by model, the time of all attempts, and the identity of the run."""
    files = {MODEL_NAMES[stage]: output_dir / f"evaluation-{stage}.json" for stage in config.stages}
    values = {model: json.loads(path.read_text()) for model, path in files.items() if path.is_file()}
    write_json(output_dir / "summary.json", summary_of(config, values, seconds))

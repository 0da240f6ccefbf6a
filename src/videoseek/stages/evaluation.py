"""Evaluation of a model on held-out questions: after a stage, or alone by `python -m videoseek.evaluate`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from videoseek.config import TrainConfig
from videoseek.distributed import barrier, gather, rank_indices
from videoseek.engine import end_distributed
from videoseek.files import write_json
from videoseek.model.load import model_folder, tokens_per_second
from videoseek.pages.report import write_report
from videoseek.progress import Progress, say
from videoseek.ranks import rank
from videoseek.rollout.native import NativeEngine
from videoseek.rollout.setup import load_policy, sampling_settings
from videoseek.rollout.trajectories import write_trajectories
from videoseek.stages.loading import load_split
from videoseek.stages.run_folder import start_folder, start_run
from videoseek.stages.scores import answer_questions, scores
from videoseek.stages.stage_run import RunContext
from videoseek.types import Sample

#: What a stage's model is called in summary and report.
MODEL_NAMES = {"direct": "direct", "sft": "sft", "grpo": "sft_rl"}


def evaluate(config: TrainConfig, *, only_check: bool) -> None:
    """Scores the model in `config.model` on the held-out questions, under its folder's name, without training.

    With `only_check` nothing but model folder and data is looked at. Raises the package's own errors.
    """
    started = time.monotonic()
    context = start_run(config)
    folder = model_folder(config.model)
    name = folder.name
    samples = load_split(config, "eval")[: config.evaluate.num_questions]
    if only_check:
        say(f"  {len(samples)} questions are in order")
        end_distributed()
        return
    if rank() == 0:
        start_folder(config, context.output_dir)
    barrier()
    values = score_model(context, folder, name, samples)
    if rank() == 0:
        summary = summary_of(config, {name: values}, time.monotonic() - started)
        write_json(context.output_dir / "summary.json", summary)
        say(f"report: {write_report(context.output_dir)}")
    end_distributed()


def score_stage(context: RunContext, stage: str, samples: list[Sample]) -> None:
    """Answers the held-out questions with a finished stage's weights, and keeps the scores."""
    values = score_model(context, context.output_dir / stage, MODEL_NAMES[stage], samples)
    if rank() == 0:
        write_json(context.output_dir / f"evaluation-{stage}.json", values)
    barrier()


def score_model(context: RunContext, folder: Path, name: str, samples: list[Sample]) -> dict[str, float]:
    """Scores of the model in `folder`; every rank answers its share. Writes trajectories/eval_NAME.jsonl."""
    config = context.config
    policy, environment = load_policy(folder, config, context.device)
    engine = NativeEngine(policy, environment, tokens_per_second(policy.model.config))
    own_samples = [samples[i] for i in rank_indices(len(samples))]
    samples_per_prompt = config.evaluate.samples
    with Progress(f"evaluate {name}", len(own_samples) * (samples_per_prompt + 1)) as progress:
        sampled, greedy = answer_questions(
            engine,
            own_samples,
            samples_per_prompt,
            config.seed,
            sampling_settings(config, config.rollout.temperature),
            on_progress=progress.track,
        )
    sampled, greedy = gather(sampled), gather(greedy)
    values = scores(sampled, greedy, config.reward.variant, config.reward.decay, config.prompt.format)
    if rank() == 0:
        write_trajectories(context.output_dir, f"eval_{name}", sampled)
        say(f"{name}: accuracy {values['accuracy']:.3f} sampled, {values['accuracy_greedy']:.3f} greedy")
    return values


def write_summary(config: TrainConfig, output_dir: Path, seconds: float) -> None:
    """summary.json: scores by model, the time this process took, and which run it was."""
    files = {MODEL_NAMES[stage]: output_dir / f"evaluation-{stage}.json" for stage in config.stages}
    values = {model: json.loads(path.read_text()) for model, path in files.items() if path.is_file()}
    write_json(output_dir / "summary.json", summary_of(config, values, seconds))


def summary_of(config: TrainConfig, values: dict[str, dict[str, float]], seconds: float) -> dict[str, Any]:
    """`SCORE/MODEL` for every model's scores; what guessing gets is of the questions and stands without a model."""
    summary: dict[str, Any] = {"recipe": config.recipe, "seed": config.seed, "wall_seconds": seconds}
    for model, of_model in values.items():
        summary |= {name if name.startswith("chance") else f"{name}/{model}": v for name, v in of_model.items()}
    return summary

"""StageRun: model, environment, data, metrics and checkpoints, shared by the training loops of all stages."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError

from videoseek.batches.masks import ReferenceTags
from videoseek.batches.packing import PackSettings
from videoseek.checkpoint import (
    ADAPTER_FOLDER,
    BestStep,
    CheckpointError,
    CheckpointWriter,
    TrainerState,
    complete_checkpoints,
    load_optimizer_state,
    read_state,
    tidy,
)
from videoseek.config import TrainConfig, UsageError
from videoseek.distributed import all_max
from videoseek.engine import BatchSums, OptimizerSettings, TrainEngine
from videoseek.evaluation.model_scores import score_policy
from videoseek.metrics import MetricsLog, RunError
from videoseek.model.adapters import add_adapters, load_adapters
from videoseek.model.load import model_folder, position_rule, tokens_per_second
from videoseek.model.policy import Policy
from videoseek.rollout.engine import RolloutEngine
from videoseek.rollout.environment import Environment
from videoseek.rollout.setup import load_policy, rollout_engine
from videoseek.rollout.trajectories import write_trajectories
from videoseek.rollout.vllm import vllm_engine
from videoseek.runtime import rank, say, world_size
from videoseek.timing import CLOCK
from videoseek.types import Episode, Sample

#: Chooses the best of a stage's evaluated steps: the accuracy of greedy answers.
BEST_METRIC = "eval/accuracy"


@dataclass(frozen=True, slots=True)
class RunContext:
    """The parts common to all stages of a run: configuration, output folder and device."""

    config: TrainConfig
    output_dir: Path
    device: torch.device


@dataclass(slots=True)
class StageRun:
    """A stage of a run. The weights came from the folder `source`. Training continues at `first_step`.

    `questions` are held-out, for evaluations within the stage. `best` is the best evaluated step so far.
    """

    context: RunContext
    name: str
    source: Path
    policy: Policy
    environment: Environment
    metrics: MetricsLog
    writer: CheckpointWriter
    questions: Sequence[Sample]
    first_step: int
    first_global_step: int
    resumed_from: Path | None
    best: BestStep | None = None
    skipped_in_a_row: int = 0
    saved_at: float = field(default_factory=time.monotonic)

    @classmethod
    def open(
        cls,
        context: RunContext,
        name: str,
        source: Path,
        metrics: MetricsLog,
        writer: CheckpointWriter,
        questions: Sequence[Sample],
        first_global_step: int,
        resumed_from: Path | None,
    ) -> StageRun:
        """Loads the stage's weights from `source`, or from the checkpoint in `resumed_from`."""
        config = context.config
        frozen = config.grpo.freeze_vision if name == "grpo" else config.sft.freeze_vision
        state = read_state(resumed_from) if resumed_from is not None else None
        if state is not None and state.seed != config.seed:
            raise CheckpointError(f"{resumed_from} is of a run with seed={state.seed}, this one has seed={config.seed}")
        if resumed_from is not None:
            model_folder(str(resumed_from), config.position_rule)
        policy, environment = cls._load(context, source, resumed_from, frozen)
        return cls(
            context=context,
            name=name,
            source=source,
            policy=policy,
            environment=environment,
            metrics=metrics,
            writer=writer,
            questions=questions,
            first_step=state.step if state is not None else 0,
            first_global_step=first_global_step,
            resumed_from=resumed_from,
            best=state.best if state is not None else None,
        )

    @staticmethod
    def _load(context: RunContext, source: Path, resumed_from: Path | None, frozen: str) -> tuple[Policy, Environment]:
        """Returns the policy to train. Adapters are stored apart and always apply to the weights of `source`."""
        config = context.config
        if not config.lora.rank:
            return load_policy(resumed_from or source, config, context.device, freeze_vision=frozen)
        policy, environment = load_policy(source, config, context.device, freeze_vision="all")
        add_adapters(policy.model, config.lora, config.seed)
        if resumed_from is not None:
            try:
                load_adapters(policy.model, resumed_from / ADAPTER_FOLDER)
            except (OSError, ValueError, SafetensorError) as error:
                raise CheckpointError(f"{resumed_from} cannot be continued from: {error}") from error
        return policy, environment

    @property
    def config(self) -> TrainConfig:
        return self.context.config

    @property
    def output_dir(self) -> Path:
        return self.context.output_dir

    @property
    def device(self) -> torch.device:
        return self.policy.device

    def reference_policy(self) -> Policy:
        """Returns the stage's starting weights, frozen, as the reference of the KL term (also after a resume)."""
        policy, _ = load_policy(self.source, self.config, self.context.device, freeze_vision="all")
        return policy.requires_grad_(False).eval()

    def engine(self, settings: OptimizerSettings) -> TrainEngine:
        """Wraps the policy in DeepSpeed, with the optimizer state of the checkpoint in `resumed_from`, if any."""
        zero = self.config.deepspeed
        engine = TrainEngine(self.policy, settings, stage=zero.stage, offload=zero.offload)
        if self.resumed_from is not None:
            load_optimizer_state(self.resumed_from, engine)
        return engine

    def rollout_engine(self) -> RolloutEngine:
        """Returns the rollout engine on the trained policy. The update reuses the features of a frozen vision tower."""
        if self.config.rollout.engine == "vllm":
            return vllm_engine(self.policy, self.environment, self.config, self.source, self.output_dir)
        return rollout_engine(self.policy, self.environment, self.config, keep_features=self.policy.vision_is_frozen)

    def pack_settings(self, *, masked: bool) -> PackSettings:
        """Returns the settings for packing. `masked` applies TDAM (SFT only)."""
        tdam, vocabulary = self.config.tdam, self.environment.vocabulary
        rule = tdam.rule if masked else "off"
        tags = None
        if rule == "reference":
            try:
                tags = ReferenceTags.from_vocabulary(vocabulary.tokenizer.get_vocab())
            except ValueError as error:
                raise UsageError(f"tdam.rule=reference with model={self.config.model}: {error}") from error
        return PackSettings(
            video_pad_id=vocabulary.video_pad,
            tokens_per_second=tokens_per_second(self.policy.model.config),
            tdam_rule=rule,
            tdam_share=tdam.share,
            seed=self.config.seed,
            position_rule=position_rule(self.policy.model.config),
            share_films=self.config.data.group_by_film,
            reference_tags=tags,
        )

    def check_finite(self, step: int, sums: BatchSums, grad_norm: float) -> dict[str, float]:
        """Reports and counts an optimizer step skipped by the engine for a non-finite loss or gradient.

        Raises RunError after `max_skipped_steps` skipped steps in a row. Skipped steps leave the weights unchanged:
        every checkpoint holds good weights.
        """
        if math.isfinite(sums.metrics["loss"]) and math.isfinite(grad_norm):
            self.skipped_in_a_row = 0
            return {"skipped_steps": 0.0}
        self.skipped_in_a_row += 1
        loss = sums.metrics["loss"]
        names = ", ".join(sums.not_finite[:8]) or "no sample's loss alone is to blame"
        say(f"{self.name} step {step + 1} is skipped: loss {loss}, gradient norm {grad_norm} (samples: {names})")
        if self.skipped_in_a_row >= self.config.max_skipped_steps:
            raise RunError(
                f"{self.skipped_in_a_row} steps in a row had no finite loss and gradient (last samples: {names}); "
                f"the weights of step {step + 1 - self.skipped_in_a_row} are unharmed. max_skipped_steps sets the limit"
            )
        return {"skipped_steps": 1.0}

    def end_step(self, engine: TrainEngine, step: int, values: dict[str, float]) -> None:
        """Ends step number `step` of the stage: evaluates if due, logs `values` and the times, and saves if due."""
        # The row comes before the checkpoint: a resumed run never lacks the row of a finished step.
        values = values | CLOCK.take()
        evaluated = self.evaluate(engine, step)
        self.metrics.write(self.name, step, values | evaluated)
        self.save(engine, step, evaluated=bool(evaluated))

    def evaluate(self, engine: TrainEngine, step: int) -> dict[str, float]:
        """Answers `questions` greedily after every `evaluate.every_steps` steps. Returns `eval/NAME`, or {}."""
        every = self.config.evaluate.every_steps
        if every is None or step % every:
            return {}
        started = time.perf_counter()
        with engine.whole_weights():
            answering = rollout_engine(self.policy, self.environment, self.config)
            scores = score_policy(self.config, answering, self.name, step, self.questions, self.output_dir)
        values = {f"eval/{name}": value for name, value in scores.items()}
        if self.best is None or values[BEST_METRIC] > self.best.value:
            name = f"checkpoint-{self.first_global_step + step}"
            self.best = BestStep(name, step, BEST_METRIC, values[BEST_METRIC])
        CLOCK.take()  # of the evaluation alone: the phases of the next step start from zero
        return values | {"time/evaluate_s": time.perf_counter() - started}

    def save(self, engine: TrainEngine, step: int, *, evaluated: bool) -> None:
        """Saves a checkpoint after `step` steps of the stage, if evaluated, or due by steps or by minutes."""
        self.writer.check()
        config = self.config
        interval = config.grpo.save_every_steps if self.name == "grpo" else None
        interval = config.save_every_steps if interval is None else interval
        due = evaluated or (bool(interval) and step % interval == 0)
        if config.save_every_minutes is not None and not due:
            # Clocks differ between machines. Rank 0 decides for all.
            late = time.monotonic() - self.saved_at >= 60 * config.save_every_minutes
            due = bool(all_max(int(late and rank() == 0), self.device))
        if due:
            state = TrainerState(self.name, step, self.first_global_step + step, config.seed, world_size(), self.best)
            tokenizer, keep = self.environment.vocabulary.tokenizer, config.keep_checkpoints
            self.writer.save(self.output_dir, engine, tokenizer, self.source, state, keep)
            self.saved_at = time.monotonic()

    def finish(self, engine: TrainEngine, folder: Path) -> None:
        """Waits for the last checkpoint, and saves the stage's final weights in `folder`."""
        self.writer.wait()
        # A kill after the renaming of the last checkpoint leaves this work to the resumed run.
        tidy(self.output_dir, self.name, self.best, self.config.keep_checkpoints)
        self.writer.save_weights(folder, engine, self.environment.vocabulary.tokenizer, self.source)

    def record(self, name: str, groups: Sequence[Sequence[Episode]]) -> None:
        """Writes this rank's sampled episodes: rank 0 to `trajectories/NAME.jsonl`, rank 1 to `NAME.rank-001.jsonl`."""
        write_trajectories(self.output_dir, name if rank() == 0 else f"{name}.rank-{rank():03d}", groups)


def find_resume_point(output_dir: Path, stage: str) -> Path | None:
    """Returns the newest complete checkpoint of `stage`, if any."""
    fitting = [folder for folder in complete_checkpoints(output_dir) if read_state(folder).stage == stage]
    return fitting[-1] if fitting else None

"""What every stage needs besides its own loop: the model in its environment, data, metrics and checkpoints."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError

from videoseek.checkpoint import (
    ADAPTER_FOLDER,
    CheckpointError,
    TrainerState,
    complete_checkpoints,
    load_optimizer_state,
    prune,
    read_state,
    save_checkpoint,
)
from videoseek.config import TrainConfig, UsageError
from videoseek.data.packing import PackSettings
from videoseek.data.schema import DataError
from videoseek.engine import OptimizerSettings, TrainEngine
from videoseek.model.adapters import add_adapters, load_adapters
from videoseek.model.load import ModelError, load_model, load_tokenizer, tokens_per_second
from videoseek.model.policy import Policy
from videoseek.rollout.environment import Environment
from videoseek.rollout.native import NativeEngine, SamplingSettings
from videoseek.runtime import MetricsLog, rank, world_size, write_text_atomic
from videoseek.tools.crop import VideoCrop
from videoseek.trajectory.grammar import FORMATS
from videoseek.trajectory.masks import ReferenceTags
from videoseek.trajectory.vocabulary import Vocabulary
from videoseek.types import Episode, Sample
from videoseek.video.errors import VideoError
from videoseek.video.quotas import VideoLimits


def video_limits(config: TrainConfig) -> VideoLimits:
    video = config.video
    return VideoLimits(**{name: getattr(video, name) for name in VideoLimits.__slots__})


@dataclass(frozen=True, slots=True)
class RunPlace:
    """What all stages of a run share: what to do, where to write, and on what to compute."""

    config: TrainConfig
    output_dir: Path
    device: torch.device
    dtype: torch.dtype


@dataclass(slots=True)
class StageRun:
    """One stage of one run. `source` is the folder its weights came from; steps before `first_step` are done."""

    place: RunPlace
    name: str
    source: Path
    policy: Policy
    environment: Environment
    metrics: MetricsLog
    first_step: int
    first_global_step: int
    resumed_from: Path | None

    @classmethod
    def open(
        cls,
        place: RunPlace,
        name: str,
        source: Path,
        metrics: MetricsLog,
        first_global_step: int,
        resumed_from: Path | None,
    ) -> StageRun:
        """Loads the stage's weights: those of `source`, or of the checkpoint that the stage goes on from."""
        config = place.config
        frozen = config.grpo.freeze_vision if name == "grpo" else config.sft.freeze_vision
        state = read_state(resumed_from) if resumed_from is not None else None
        if state is not None and state.seed != config.seed:
            raise CheckpointError(f"{resumed_from} is of a run with seed={state.seed}, this one has seed={config.seed}")
        policy, environment = cls._load(place, source, resumed_from, frozen)
        return cls(
            place=place,
            name=name,
            source=source,
            policy=policy,
            environment=environment,
            metrics=metrics,
            first_step=state.step if state is not None else 0,
            first_global_step=first_global_step,
            resumed_from=resumed_from,
        )

    @staticmethod
    def _load(place: RunPlace, source: Path, resumed_from: Path | None, frozen: str) -> tuple[Policy, Environment]:
        """The policy to train. Adapters, which a checkpoint holds apart, always change the weights of `source`."""
        config = place.config
        if not config.lora.rank:
            return load_policy(resumed_from or source, place, freeze_vision=frozen)
        policy, environment = load_policy(source, place, freeze_vision="all")
        add_adapters(policy.model, config.lora, config.seed)
        if resumed_from is not None:
            try:
                load_adapters(policy.model, resumed_from / ADAPTER_FOLDER)
            except (OSError, ValueError, SafetensorError) as error:
                raise CheckpointError(f"{resumed_from} cannot be continued from: {error}") from error
        return policy, environment

    @property
    def config(self) -> TrainConfig:
        return self.place.config

    @property
    def output_dir(self) -> Path:
        return self.place.output_dir

    @property
    def device(self) -> torch.device:
        return self.policy.device

    def reference_policy(self) -> Policy:
        """The stage's starting weights, frozen: what a KL term measures the distance to, resumed or not."""
        policy, _ = load_policy(self.source, self.place, freeze_vision="all")
        return policy.requires_grad_(False).eval()

    def engine(self, settings: OptimizerSettings) -> TrainEngine:
        """DeepSpeed around the policy, at the state of the checkpoint that the stage goes on from."""
        zero = self.config.deepspeed
        engine = TrainEngine(self.policy, settings, stage=zero.stage, offload=zero.offload)
        if self.resumed_from is not None:
            load_optimizer_state(self.resumed_from, engine)
        return engine

    def native_engine(self) -> NativeEngine:
        """The rollout engine on the policy under training; a frozen vision tower's features serve the update too."""
        per_second = tokens_per_second(self.policy.model.config)
        return NativeEngine(self.policy, self.environment, per_second, keep_features=self.policy.vision_is_frozen)

    def pack_settings(self, *, masked: bool) -> PackSettings:
        """`masked`: whether TDAM is applied, as SFT does."""
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
            reference_tags=tags,
        )

    def save(self, engine: TrainEngine, step: int) -> None:
        """A checkpoint after `step` steps of this stage, if the recipe wants one there."""
        every = self.config.save_every_steps
        if every and step % every == 0:
            state = TrainerState(self.name, step, self.first_global_step + step, self.config.seed, world_size())
            save_checkpoint(self.output_dir, engine, self.environment.vocabulary.tokenizer, self.source, state)
            prune(self.output_dir, self.config.keep_checkpoints)

    def record(self, name: str, groups: Sequence[Sequence[Episode]]) -> None:
        """Writes sampled episodes to `trajectories/NAME.jsonl`, rank 0 those of its own share."""
        if rank() == 0:
            write_trajectories(self.output_dir, name, groups)


def write_trajectories(output_dir: Path, name: str, groups: Sequence[Sequence[Episode]]) -> None:
    """One episode a line: text, windows, rewards and ids; never pixels."""
    (output_dir / "trajectories").mkdir(exist_ok=True)
    lines = [json.dumps(e.to_json(), ensure_ascii=False) + "\n" for group in groups for e in group]
    write_text_atomic(output_dir / "trajectories" / f"{name}.jsonl", "".join(lines))


def load_policy(folder: Path, place: RunPlace, *, freeze_vision: str = "none") -> tuple[Policy, Environment]:
    """The policy of a model folder, and the environment that speaks its tokens."""
    config = place.config
    policy = Policy(load_model(folder, place.dtype, place.device), freeze_vision=freeze_vision)
    if config.gradient_checkpointing:  # takes effect in training mode only
        policy.model.gradient_checkpointing_enable({"use_reentrant": False})
    try:
        vocabulary = Vocabulary(load_tokenizer(folder), policy.model.lm_head.weight.shape[0])
    except ValueError as error:
        raise ModelError(f"model {folder}: {error}") from error
    environment = Environment(
        vocabulary=vocabulary,
        fmt=FORMATS[config.prompt.format](config.prompt.style),
        tool=VideoCrop(video_limits(config)),
        max_turns=config.rollout.max_turns,
        max_context_tokens=config.rollout.max_context_tokens,
    )
    return policy, environment


def sampling_settings(config: TrainConfig, temperature: float) -> SamplingSettings:
    rollout = config.rollout
    return SamplingSettings(
        temperature=temperature,
        top_p=rollout.top_p,
        max_new_tokens_per_turn=rollout.max_new_tokens_per_turn,
        deadline_seconds=rollout.deadline_seconds,
        episodes_per_batch=rollout.episodes_per_batch,
    )


def find_resume_point(output_dir: Path, stage: str) -> Path | None:
    """The checkpoint that `stage` goes on from, if any: the newest complete one of that stage."""
    fitting = [folder for folder in complete_checkpoints(output_dir) if read_state(folder).stage == stage]
    return fitting[-1] if fitting else None


#: Tokens of replayed episodes that are kept, at about 40 bytes each.
_KEPT_TOKENS = 2**23


class ReplayedEpisodes(Sequence[Episode]):
    """Recorded trajectories as episodes, replayed when asked for: token ids and references, no pixels.

    Those used last are kept, up to `kept_tokens`.
    """

    def __init__(self, samples: Sequence[Sample], environment: Environment, kept_tokens: int = _KEPT_TOKENS) -> None:
        self._samples = samples
        self._environment = environment
        self._episodes: OrderedDict[int, Episode] = OrderedDict()
        self._num_tokens, self._kept_tokens = 0, kept_tokens

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Episode:  # type: ignore[override]
        if index in self._episodes:
            self._episodes.move_to_end(index)
            return self._episodes[index]
        sample = self._samples[index]
        try:
            episode = self._environment.replay(sample)
        except (ValueError, VideoError) as error:
            raise DataError(f"sample {sample.id!r}: {error}") from error
        self._episodes[index] = episode
        self._num_tokens += len(episode.token_ids)
        while self._num_tokens > self._kept_tokens:
            _, oldest = self._episodes.popitem(last=False)
            self._num_tokens -= len(oldest.token_ids)
        return episode

"""Builds the policy, the environment, the engine and the sampling settings of a rollout from a configuration."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import GenerationConfig

from videoseek.config import TrainConfig
from videoseek.distributed import choose_dtype
from videoseek.model.load import ModelError, load_model, load_tokenizer, position_rule, tokens_per_second
from videoseek.model.policy import Policy
from videoseek.rollout.engine import RolloutEngine
from videoseek.rollout.environment import Environment
from videoseek.rollout.native import NativeSampler
from videoseek.rollout.sampler import SamplingSettings
from videoseek.tools.crop import VideoCrop
from videoseek.tools.table import load_tools
from videoseek.trajectory.chat_template import chat_template
from videoseek.trajectory.run_format import run_format
from videoseek.trajectory.vocabulary import Vocabulary


def load_policy(
    folder: Path, config: TrainConfig, device: torch.device, *, freeze_vision: str = "none"
) -> tuple[Policy, Environment]:
    """Returns the policy of a model folder and an environment with its tokenizer.

    Raises ModelError for an unusable folder.
    """
    policy = Policy(load_model(folder, choose_dtype(config.dtype), device), freeze_vision=freeze_vision)
    policy.model.config.position_rule = config.position_rule or position_rule(policy.model.config)  # saved with it
    if config.gradient_checkpointing:  # acts in training mode only
        policy.model.gradient_checkpointing_enable({"use_reentrant": False})
    try:
        vocabulary = Vocabulary(load_tokenizer(folder), policy.model.lm_head.weight.shape[0])
    except ValueError as error:
        raise ModelError(f"model {folder}: {error}") from error
    environment = run_environment(config, vocabulary)
    vocabulary.tokenizer.chat_template = chat_template(environment.fmt)  # saved with the tokenizer
    policy.model.generation_config = generation_config(policy.model.generation_config, vocabulary)
    return policy, environment


def run_environment(config: TrainConfig, vocabulary: Vocabulary) -> Environment:
    """Returns the rules of a run's episodes."""
    return Environment(
        vocabulary=vocabulary,
        fmt=run_format(config),
        tool=VideoCrop(config.video),
        max_turns=config.rollout.max_turns,
        max_context_tokens=config.rollout.max_context_tokens,
        tools=load_tools(config.tools, config.video),
        calls_per_turn=config.rollout.calls_per_turn,
        tool_deadline_seconds=config.rollout.tool_deadline_seconds,
    )


def generation_config(known: GenerationConfig, vocabulary: Vocabulary) -> GenerationConfig:
    """Returns the settings by which other tools generate turns as `ask` does: greedy, and never a banned token."""
    others = known.eos_token_id if isinstance(known.eos_token_id, list) else [known.eos_token_id]
    return GenerationConfig(
        bos_token_id=known.bos_token_id,
        eos_token_id=[token for token in dict.fromkeys([vocabulary.im_end, *others]) if token is not None],
        pad_token_id=known.pad_token_id,
        suppress_tokens=list(vocabulary.banned),
    )


def rollout_engine(
    policy: Policy, environment: Environment, config: TrainConfig, *, keep_features: bool = False
) -> RolloutEngine:
    """Returns the rollout engine on a policy. `keep_features` is for a trainer with a frozen vision tower."""
    sampler = NativeSampler(
        policy,
        environment.vocabulary,
        tokens_per_second(policy.model.config),
        keep_features=keep_features,
        cache_tokens=config.rollout.cache_tokens,
    )
    return RolloutEngine(environment, sampler, sampler.features)


def sampling_settings(config: TrainConfig, temperature: float) -> SamplingSettings:
    """Returns the sampling settings of a configuration at `temperature`."""
    rollout = config.rollout
    return SamplingSettings(
        temperature=temperature,
        top_p=rollout.top_p,
        max_new_tokens_per_turn=rollout.max_new_tokens_per_turn,
        deadline_seconds=rollout.deadline_seconds,
    )

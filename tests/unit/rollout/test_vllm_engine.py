"""What `rollout.engine=vllm` cannot do is refused before a worker starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.tiny_world import tiny_world

from videoseek.config import UsageError
from videoseek.config_merge import load_config
from videoseek.rollout.vllm import vllm_engine


@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        ("position_rule=hf5", "position_rule=hf5 is not vLLM's; rollout.engine=vllm works with max_all only"),
        ("rollout.temperature=3", "rollout.temperature=3 is above 2, the limit of rollout.engine=vllm"),
        ("rollout.vllm_options=[fast]", "vLLM's option 'fast' is not NAME=VALUE, such as gpu_memory_utilization=0.4"),
        ("rollout.servers=[a:1]", "VIDEOSEEK_WORKER_TOKEN is not set; it holds the token that a worker and its"),
        ("rollout.servers=[a:1, b]", "rollout.servers: address 'b' is not HOST:PORT"),
        ("rollout.vllm_python=/no/python", "vllm_python=/no/python is not a program that can be started"),
    ],
)
def test_refusals(tmp_path: Path, key: str, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VIDEOSEEK_WORKER_TOKEN", raising=False)
    world, config = tiny_world(), load_config(["recipe=sft_rl", "rollout.engine=vllm", key])
    policy = world.policy()
    policy.model.config.position_rule = config.position_rule or "max_all"
    with pytest.raises(UsageError) as caught:
        vllm_engine(policy, world.environment, config, tmp_path, tmp_path)
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize("rank", ["0", "1"])
def test_each_rank_needs_a_server(rank: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every rank refuses: a rank that went on would wait for the others."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", rank)
    config = load_config(["recipe=sft_rl", "rollout.engine=vllm", "rollout.servers=[a:1]"])
    world = tiny_world()
    with pytest.raises(UsageError, match="rollout.servers names 1 for 2 ranks; each needs one"):
        vllm_engine(world.policy(), world.environment, config, tmp_path, tmp_path)

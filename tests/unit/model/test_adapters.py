"""LoRA adapters: nothing at first, what they become can be merged, saved alone, and loaded by peft itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModel, PeftModel
from support.tiny_world import TinyWorld, tiny_world

from videoseek.batches.packing import pack_documents
from videoseek.config import LoRAConfig, UsageError
from videoseek.model import adapters
from videoseek.model.adapters import (
    adapter_weights,
    add_adapters,
    check_peft,
    load_adapters,
    merged_weights,
    save_adapters,
)
from videoseek.model.attention import install_attention
from videoseek.model.load import load_model, save_pretrained
from videoseek.model.policy import Policy

SETTINGS = LoRAConfig(rank=3, alpha=6)


@pytest.fixture(scope="module")
def world() -> TinyWorld:
    return tiny_world()


def adapted(world: TinyWorld, *, moved: bool) -> Policy:
    """A policy with adapters; `moved`: as if they had been trained."""
    policy = Policy(world.policy().model, freeze_vision="all")
    add_adapters(policy.model, SETTINGS, seed=0)
    if moved:
        draw = torch.Generator().manual_seed(1)
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.data = torch.randn(parameter.shape, generator=draw) * 0.1
    return policy.eval()


def logprobs(policy: Policy, world: TinyWorld) -> torch.Tensor:
    with torch.no_grad():
        return policy(pack_documents(world.episodes(), world.packing))[0]


def test_new_adapters_change_nothing_and_alone_are_trained(world: TinyWorld) -> None:
    policy = adapted(world, moved=False)
    assert torch.equal(logprobs(policy, world), logprobs(world.policy().eval(), world))
    trained = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    layers = len(policy.model.model.language_model.layers)
    assert len(trained) == layers * 7 * 2 and all(".lora_" in name and "visual" not in name for name in trained)
    assert policy.vision_is_frozen


def test_the_same_seed_makes_the_same_adapters(world: TinyWorld) -> None:
    one, other = (adapted(world, moved=False).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_merged_weights_compute_the_same_in_the_plain_model(world: TinyWorld, tmp_path: Path) -> None:
    policy = adapted(world, moved=True)
    wanted = logprobs(policy, world)
    assert (wanted - logprobs(world.policy().eval(), world)).abs().max() > 0.01
    weights = merged_weights(policy.model)
    assert set(weights) == set(world.policy().model.state_dict())
    save_pretrained(policy.model, world.vocabulary.tokenizer, tmp_path, state_dict=weights)
    plain = Policy(load_model(tmp_path, torch.float32, torch.device("cpu"))).eval()
    torch.testing.assert_close(logprobs(plain, world), wanted, atol=1e-4, rtol=0)


def test_adapters_alone_go_on_and_load_in_peft(world: TinyWorld, tmp_path: Path) -> None:
    policy = adapted(world, moved=True)
    save_adapters(policy.model, tmp_path, adapter_weights(policy.model), base=tmp_path)
    again = adapted(world, moved=False)
    load_adapters(again.model, tmp_path)
    assert torch.equal(logprobs(again, world), logprobs(policy, world))
    plain = world.policy()
    PeftModel.from_pretrained(plain.model, str(tmp_path))
    torch.testing.assert_close(logprobs(plain.eval(), world), logprobs(policy, world), atol=1e-5, rtol=0)


def test_adapters_name_their_base(world: TinyWorld, tmp_path: Path) -> None:
    """`AutoPeftModel` finds class and weights of the base by itself."""
    policy, base, alone = adapted(world, moved=True), tmp_path / "base", tmp_path / "adapter"
    save_pretrained(world.policy().model, world.vocabulary.tokenizer, base)
    save_adapters(policy.model, alone, adapter_weights(policy.model), base=base)
    opened = AutoPeftModel.from_pretrained(alone)
    assert opened.peft_config["default"].base_model_name_or_path == str(base)
    plain = Policy(install_attention(opened.get_base_model())).eval()
    torch.testing.assert_close(logprobs(plain, world), logprobs(policy, world), atol=1e-5, rtol=0)


def test_adapters_of_another_shape_are_refused(world: TinyWorld, tmp_path: Path) -> None:
    model = adapted(world, moved=True).model
    save_adapters(model, tmp_path, adapter_weights(model), base=tmp_path)
    other = Policy(world.policy().model, freeze_vision="all")
    add_adapters(other.model, replace(SETTINGS, rank=2), seed=0)
    with pytest.raises(ValueError, match="another lora.rank or other lora.targets"):
        load_adapters(other.model, tmp_path)


def test_missing_peft_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match="lora.rank=3 needs the package peft"):
        check_peft(SETTINGS)
    check_peft(LoRAConfig())

"""Computing activations anew changes memory and time, and keeps the result."""

from __future__ import annotations

import pytest
import torch
from support.tiny_world import assert_same_gradients, gradients, tiny_world

from videoseek.batches.packing import pack_documents
from videoseek.config_merge import load_config
from videoseek.model.attention import PackedAttention
from videoseek.model.load import model_folder
from videoseek.rollout.setup import load_policy


def loss_gradients_and_recomputed_layers(
    enabled: bool, monkeypatch: pytest.MonkeyPatch
) -> tuple[torch.Tensor, dict[str, torch.Tensor], list[int]]:
    config = load_config(["recipe=sft_rl", f"gradient_checkpointing={enabled}"])
    policy, environment = load_policy(model_folder("tiny"), config, torch.device("cpu"))
    policy.train()
    world = tiny_world()
    batch = pack_documents([environment.replay(sample) for sample in world.samples[:4]], world.packing)
    loss = -policy(batch)[0].mean()

    layers: list[int] = []
    attend = PackedAttention.attend

    def counted(self: PackedAttention, layer: int, *tensors: torch.Tensor) -> torch.Tensor:
        layers.append(layer)
        return attend(self, layer, *tensors)

    with monkeypatch.context() as patch:
        patch.setattr(PackedAttention, "attend", counted)
        return loss.detach(), gradients(policy, loss), layers


def test_loss_and_gradients_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    loss, wanted, kept = loss_gradients_and_recomputed_layers(False, monkeypatch)
    same_loss, same, recomputed = loss_gradients_and_recomputed_layers(True, monkeypatch)
    assert (kept, sorted(recomputed)) == ([], [0, 1, 2, 3])
    assert torch.equal(loss, same_loss)
    assert any("visual" in name for name in same)
    assert_same_gradients(same, wanted, tolerance=1e-6)

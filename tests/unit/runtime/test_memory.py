"""The reckoned memory of training: by hand for the 7B model, and against what torch allocates for a layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from support.qwen_7b import published_model
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLDecoderLayer, Qwen2_5_VLVisionBlock

from videoseek.config import DeepSpeedConfig, LoRAConfig, TrainConfig
from videoseek.config_merge import load_config
from videoseek.memory import Layers, ModelSizes, memory_line, training_memory
from videoseek.model.adapters import add_adapters
from videoseek.model.load import model_folder
from videoseek.model.policy import Policy
from videoseek.rollout.setup import load_policy

ALL, TRAINED_IN_SFT = 8_292_166_656, 8_292_166_656 - 676_550_144 + 44_574_464  # the tower is frozen, its projector not


@pytest.fixture(scope="module")
def sizes() -> ModelSizes:
    return ModelSizes.of(published_model(), LoRAConfig())


def recipe(**zero: object) -> TrainConfig:
    config = load_config(["recipe=sft_rl_7b", "grpo.max_tokens_per_micro_batch=65536"])
    return replace(config, deepspeed=DeepSpeedConfig(**zero))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("stage", "weights", "optimizer", "gradients"),
    [
        (1, 2 * ALL, 12 * ALL / 32, 6 * ALL),
        (2, 2 * ALL, 12 * ALL / 32, 4 * ALL / 32 + 6 * 5e8),
        (3, 2 * ALL / 32 + 2e9, 12 * ALL / 32, 4 * ALL / 32 + 6 * 5e8),
    ],
)
def test_states_of_bfloat16_weights_equal_hand_computed_sizes(
    stage: int, weights: float, optimizer: float, gradients: float, sizes: ModelSizes
) -> None:
    parts = training_memory(sizes, recipe(stage=stage), "grpo", num_ranks=32)
    assert (parts["weights"], parts["optimizer"], parts["gradients"]) == (weights, optimizer, gradients)


def test_activations_of_a_row_of_video(sizes: ModelSizes) -> None:
    in_rl = training_memory(sizes, recipe(stage=3), "grpo", num_ranks=32)
    assert in_rl["kept activations"] == 65536 * (28 * 3584 + 4 * 32 * 1280) * 2
    assert in_rl["one layer"] == 65536 * (12 * 18944 + 36 * 3584)
    in_sft = training_memory(sizes, recipe(stage=3), "sft", num_ranks=32)
    assert in_sft["kept activations"] == 40000 * 28 * 3584 * 2, "a frozen tower keeps nothing"
    assert in_sft["optimizer"] == 12 * TRAINED_IN_SFT / 32


def test_a_short_row_is_ruled_by_its_logits(sizes: ModelSizes) -> None:
    config = recipe(stage=3)
    config = replace(config, sft=replace(config.sft, max_tokens_per_micro_batch=4096))
    assert training_memory(sizes, config, "sft", num_ranks=32)["one layer"] == 4096 * 152064 * 16


def test_without_checkpointing_every_layer_stays(sizes: ModelSizes) -> None:
    kept = training_memory(sizes, replace(recipe(stage=3), gradient_checkpointing=False), "sft", num_ranks=32)
    assert kept["kept activations"] == 27 * kept["one layer"]


def test_offload_leaves_no_optimizer_state_on_the_gpu(sizes: ModelSizes) -> None:
    assert training_memory(sizes, recipe(stage=2, offload=True), "sft", num_ranks=32)["optimizer"] == 0


def test_line_adds_its_parts_up() -> None:
    assert memory_line({"weights": 2.0**30, "gradients": 2.0**29}) == "1.5 GiB = weights 1 + gradients 0.5"


@pytest.mark.parametrize("freeze", ["none", "tower", "all"])
def test_counts_are_those_of_the_policy(freeze: str) -> None:
    policy, _ = load_policy(model_folder("tiny"), load_config([]), torch.device("cpu"), freeze_vision=freeze)
    sizes = ModelSizes.of(policy.model, LoRAConfig())
    assert sizes.num_parameters == sum(parameter.numel() for parameter in policy.parameters())
    assert sizes.num_trained(freeze) == sum(p.numel() for p in policy.parameters() if p.requires_grad)


def test_adapters_are_those_of_peft() -> None:
    pytest.importorskip("peft")
    lora = LoRAConfig(rank=3, targets=["q_proj", "v_proj", "down_proj"])
    policy, _ = load_policy(model_folder("tiny"), load_config([]), torch.device("cpu"), freeze_vision="all")
    sizes = ModelSizes.of(policy.model, lora)
    add_adapters(policy.model, lora, seed=0)
    trained = sum(p.numel() for p in Policy(policy.model, freeze_vision="all").parameters() if p.requires_grad)
    assert sizes.num_trained("all") == trained > 0


def causal(
    module: object, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, attention_mask: None = None, **_: object
) -> tuple[torch.Tensor, None]:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2), None


def peak_bytes(layer: Callable[[torch.Tensor], torch.Tensor], hidden: torch.Tensor) -> int:
    """The most that is allocated at a time during forward and checkpointed backward."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as events:
        out = checkpoint(layer, hidden, use_reentrant=False)
        out.backward(torch.ones_like(out))
    allocated = peak = 0
    for event in sorted(events.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            allocated += event.nbytes()
            peak = max(peak, allocated)
    return peak


@pytest.mark.parametrize("kind", ["decoder", "tower"])
def test_a_layer_takes_what_is_reckoned(kind: str) -> None:
    AttentionInterface.register("causal", causal)
    if kind == "decoder":  # the 7B model's, in an eighth of the widths
        hidden, mlp, heads = 448, 2368, 28
        text = {"hidden_size": hidden, "intermediate_size": mlp, "num_attention_heads": heads}
        config = Qwen2_5_VLConfig(text_config=text | {"num_key_value_heads": 4, "vocab_size": 8}).text_config
        config._attn_implementation = "causal"
        block: torch.nn.Module = Qwen2_5_VLDecoderLayer(config, 0)
    else:
        hidden, mlp, heads = 320, 856, 16
        vision = {"hidden_size": hidden, "intermediate_size": mlp, "num_heads": heads, "depth": 1}
        config = Qwen2_5_VLConfig(vision_config=vision).vision_config
        config._attn_implementation = "causal"
        block = Qwen2_5_VLVisionBlock(config)
    block = block.to(torch.bfloat16)

    def peak(num_tokens: int) -> int:
        angles = torch.zeros(*((1,) if kind == "decoder" else ()), num_tokens, hidden // heads, dtype=torch.bfloat16)
        rest = {"position_embeddings": (angles, angles)}
        rest |= {} if kind == "decoder" else {"cu_seqlens": torch.tensor([0, num_tokens])}  # type: ignore[dict-item]
        shape = (1, num_tokens, hidden) if kind == "decoder" else (num_tokens, hidden)
        return peak_bytes(
            lambda rows: block(rows, **rest), torch.zeros(shape, dtype=torch.bfloat16, requires_grad=True)
        )

    measured = (peak(768) - peak(256)) / 512  # bytes for each token, without what the weights take
    reckoned = Layers(1, hidden, mlp).layer_bytes(element_bytes=2)
    assert 0.8 * reckoned < measured < 1.05 * reckoned, "at small widths what counts by head weighs more"

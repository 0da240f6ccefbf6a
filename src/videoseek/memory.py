"""Estimates the memory of training on each GPU from the model's sizes and the configuration.

The estimate excludes the CUDA context, buffers of collectives and fragmentation. Leave a tenth of the GPU free.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn
from transformers import Qwen2_5_VLForConditionalGeneration

from videoseek.config import LoRAConfig, TrainConfig
from videoseek.model.policy import PROJECTION_ROWS

_PATCHES_PER_TOKEN = 4  # a merged token of video is 2 x 2 patches
#: Peak bytes of one bfloat16 layer in recomputation and backward pass, per token and per element of the MLP width and
#: of the hidden size. Measured: torch's allocations peaked at 12.0 and 26.6 bytes in the decoder, and at 12.0 and 35.9
#: bytes in the vision tower (transformers 5.23).
_LAYER_BYTES_PER_MLP_ELEMENT = 12
_LAYER_BYTES_PER_HIDDEN_ELEMENT = 36
#: Peak bytes of a logit: log-probs, the two products of the entropy or of the backward pass, and a gradient.
_LOGIT_BYTES = 16
#: DeepSpeed's defaults, in elements: one reduction of gradients, and one gathering of weights under ZeRO-3.
_BUCKET_ELEMENTS = 5 * 10**8
_GATHERED_ELEMENTS = 10**9


@dataclass(frozen=True, slots=True)
class Layers:
    """A stack of equal transformer layers: number, hidden size and MLP width."""

    number: int
    hidden_size: int
    mlp_size: int

    def input_bytes(self, element_bytes: int) -> int:
        """Returns the bytes per token of all layer inputs. Gradient checkpointing keeps the inputs."""
        return self.number * self.hidden_size * element_bytes

    def layer_bytes(self, element_bytes: int) -> int:
        """Returns the peak bytes per token of a layer's backward pass."""
        in_bfloat16 = _LAYER_BYTES_PER_MLP_ELEMENT * self.mlp_size + _LAYER_BYTES_PER_HIDDEN_ELEMENT * self.hidden_size
        return in_bfloat16 * element_bytes // 2


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """Sizes of a Qwen2.5-VL model in elements; `num_vision` counts the tower with its projector."""

    num_parameters: int
    num_vision: int
    num_projector: int
    num_adapters: int
    decoder: Layers
    tower: Layers
    vocabulary_size: int

    @classmethod
    def of(cls, model: Qwen2_5_VLForConditionalGeneration, lora: LoRAConfig) -> ModelSizes:
        """Counts a model without adapters (on any device, meta included) and the adapters of `lora`."""
        text, vision = model.config.text_config, model.config.vision_config
        adapted = [
            module
            for name, module in model.model.language_model.named_modules()
            if isinstance(module, nn.Linear) and name.rpartition(".")[2] in lora.targets
        ]
        return cls(
            num_parameters=_count(model),
            num_vision=_count(model.model.visual),
            num_projector=_count(model.model.visual.merger),
            num_adapters=lora.rank * sum(module.in_features + module.out_features for module in adapted),
            decoder=Layers(text.num_hidden_layers, text.hidden_size, text.intermediate_size),
            tower=Layers(vision.depth, vision.hidden_size, vision.intermediate_size),
            vocabulary_size=model.lm_head.weight.shape[0],
        )

    def num_trained(self, freeze_vision: str) -> int:
        """Returns the number of trained parameters under a `freeze_vision` key; with adapters, of the adapters."""
        if self.num_adapters:
            return self.num_adapters
        frozen = {"none": 0, "tower": self.num_vision - self.num_projector, "all": self.num_vision}
        return self.num_parameters - frozen[freeze_vision]


def training_memory(sizes: ModelSizes, config: TrainConfig, stage: str, num_ranks: int) -> dict[str, float]:
    """Returns the bytes on each of `num_ranks` GPUs, by part, while `stage` trains a full row of video.

    A part may be 0. `one layer` is the larger of a layer's backward pass and the logits.
    """
    settings = config.grpo if stage == "grpo" else config.sft
    zero = config.deepspeed.stage
    element_bytes = 2 if config.dtype == "bfloat16" else 4
    total, trained = sizes.num_parameters + sizes.num_adapters, sizes.num_trained(settings.freeze_vision)
    shares = {level: num_ranks if zero >= level else 1 for level in (1, 2, 3)}

    weights = total * element_bytes / shares[3]
    gradients = 4 * trained / shares[2]  # fp32 sums over rows and ranks
    if zero == 1 and element_bytes == 2:
        gradients += 2 * trained  # the backward pass leaves bf16 gradients beside the fp32 sums
    if zero >= 2:
        gradients += min(trained, _BUCKET_ELEMENTS) * (element_bytes + 4)  # one bucket, and its fp32 copy to be reduced
    if zero == 3:
        weights += min(total, _GATHERED_ELEMENTS) * element_bytes
    # Two moments. ZeRO adds fp32 copies of the weights.
    optimizer = 0.0 if config.deepspeed.offload else trained * (12 if zero else 8) / shares[1]

    num_tokens = settings.max_tokens_per_micro_batch
    stacks = [(sizes.decoder, num_tokens)]
    if settings.freeze_vision == "none" and not sizes.num_adapters:
        stacks.append((sizes.tower, num_tokens * _PATCHES_PER_TOKEN))
    logits = min(num_tokens, PROJECTION_ROWS) * sizes.vocabulary_size * _LOGIT_BYTES
    passes = [tokens * layers.layer_bytes(element_bytes) for layers, tokens in stacks]
    kept = sum(tokens * layers.input_bytes(element_bytes) for layers, tokens in stacks)
    if not config.gradient_checkpointing:
        kept = sum(peak * (layers.number - 1) for peak, (layers, _) in zip(passes, stacks, strict=True))
    return {
        "weights": weights,
        "optimizer": optimizer,
        "gradients": gradients,
        "kept activations": kept,
        "one layer": max([*passes, logits]),
    }


def memory_line(parts: Mapping[str, float]) -> str:
    """Returns the parts of `training_memory` and their sum as a line of text, in GiB."""
    terms = " + ".join(f"{name} {size / 2**30:.3g}" for name, size in parts.items())
    return f"{sum(parts.values()) / 2**30:.3g} GiB = {terms}"


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())

"""LoRA (2106.09685): small matrices beside the decoder's, trained in their place. peft does the work.

The rest of the toolkit sees a model as before: what is saved are whole weights with the adapters merged in, which any
tool loads, and the adapters alone in peft's own layout, from which training goes on.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2_5_VLForConditionalGeneration

from videoseek.config import LoRAConfig, UsageError

_NAME = "default"
_WEIGHTS = "adapter_model.safetensors"
#: What peft puts before the names of the model that it wraps.
_WRAPPED = "base_model.model."


def check_peft(settings: LoRAConfig) -> None:
    """Raises UsageError when adapters are asked for and peft is not there."""
    if settings.rank and find_spec("peft") is None:
        raise UsageError(
            f"lora.rank={settings.rank} needs the package peft, which is not installed: pip install 'videoseek[lora]'"
        )


def add_adapters(model: Qwen2_5_VLForConditionalGeneration, settings: LoRAConfig, seed: int) -> None:
    """Puts adapters, which change nothing yet, beside the decoder's matrices; nothing else is trained from here on."""
    from peft import LoraConfig, inject_adapter_in_model

    targets = rf".*language_model.*\.({'|'.join(settings.targets)})"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=targets), model)


def has_adapters(model: Qwen2_5_VLForConditionalGeneration) -> bool:
    return hasattr(model, "peft_config")


@torch.no_grad()
def merged_weights(model: Qwen2_5_VLForConditionalGeneration) -> dict[str, torch.Tensor]:
    """The weights, by name, of the plain model that computes what this one does with its adapters."""
    from peft.tuners.lora import Linear

    weights = {
        name.replace(".base_layer.", "."): tensor for name, tensor in model.state_dict().items() if ".lora_" not in name
    }
    for name, module in model.named_modules():
        if isinstance(module, Linear):
            weights[f"{name}.weight"] = weights[f"{name}.weight"] + module.get_delta_weight(_NAME)
    return weights


def save_adapters(model: Qwen2_5_VLForConditionalGeneration, folder: Path) -> None:
    """Adapters as peft's `PeftModel.from_pretrained` loads them."""
    folder.mkdir(parents=True, exist_ok=True)
    model.peft_config[_NAME].save_pretrained(str(folder))
    named = {name: tensor.contiguous() for name, tensor in _adapters(model).items()}
    save_file(named, folder / _WEIGHTS, metadata={"format": "pt"})


def load_adapters(model: Qwen2_5_VLForConditionalGeneration, folder: Path) -> None:
    """Puts what `save_adapters` wrote into adapters of the same shape. Raises ValueError when the shapes differ."""
    mine, saved = _adapters(model), load_file(folder / _WEIGHTS)
    if {name: tensor.shape for name, tensor in mine.items()} != {name: tensor.shape for name, tensor in saved.items()}:
        raise ValueError(f"the adapters in {folder} are of another lora.rank or other lora.targets")
    with torch.no_grad():
        for name, tensor in mine.items():
            tensor.copy_(saved[name])


def _adapters(model: Qwen2_5_VLForConditionalGeneration) -> dict[str, torch.Tensor]:
    """The adapters' own tensors, by the names that peft gives them in files."""
    return {
        _WRAPPED + name.replace(f".{_NAME}.", "."): parameter.data
        for name, parameter in model.named_parameters()
        if ".lora_" in name
    }

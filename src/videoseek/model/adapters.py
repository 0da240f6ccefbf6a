"""LoRA (2106.09685) by peft: trains small matrices beside the frozen matrices of the decoder.

A checkpoint holds whole weights with the adapters merged, for any tool, and the adapters alone in peft's layout, for
resumed training.
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
#: peft's prefix for the names of a wrapped model.
_WRAPPED = "base_model.model."


def check_peft(settings: LoRAConfig) -> None:
    """Raises UsageError for `lora.rank` > 0 without peft."""
    if settings.rank and find_spec("peft") is None:
        raise UsageError(
            f"lora.rank={settings.rank} needs the package peft, which is not installed: pip install 'videoseek[lora]'"
        )


def add_adapters(model: Qwen2_5_VLForConditionalGeneration, settings: LoRAConfig, seed: int) -> None:
    """Adds adapters to the decoder's matrices and freezes all other weights. New adapters keep the output unchanged."""
    from peft import LoraConfig, inject_adapter_in_model

    targets = rf".*language_model.*\.({'|'.join(settings.targets)})"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=targets), model)


def has_adapters(model: Qwen2_5_VLForConditionalGeneration) -> bool:
    """Returns whether `add_adapters` was called on the model."""
    return hasattr(model, "peft_config")


@torch.no_grad()
def merged_weights(model: Qwen2_5_VLForConditionalGeneration) -> dict[str, torch.Tensor]:
    """Returns the weights by name of an equivalent plain model, with the adapters merged."""
    from peft.tuners.lora import Linear

    weights = {
        name.replace(".base_layer.", "."): tensor for name, tensor in model.state_dict().items() if ".lora_" not in name
    }
    for name, module in model.named_modules():
        if isinstance(module, Linear):
            weights[f"{name}.weight"] = weights[f"{name}.weight"] + module.get_delta_weight(_NAME)
    return weights


def save_adapters(
    model: Qwen2_5_VLForConditionalGeneration, folder: Path, adapters: dict[str, torch.Tensor], *, base: Path
) -> None:
    """Writes `adapter_weights` of the model in `base`, in the layout of peft's `AutoPeftModel.from_pretrained`."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = model.peft_config[_NAME]
    settings.base_model_name_or_path = str(base.resolve())
    # peft's task types know no model of images and text: `AutoPeftModel` finds the class by this name.
    kind = type(model)
    settings.auto_mapping = {"base_model_class": kind.__name__, "parent_library": kind.__module__}
    settings.save_pretrained(str(folder))
    named = {name: tensor.contiguous() for name, tensor in adapters.items()}
    save_file(named, folder / _WEIGHTS, metadata={"format": "pt"})


def load_adapters(model: Qwen2_5_VLForConditionalGeneration, folder: Path) -> None:
    """Loads the files of `save_adapters` into adapters of the same shape. Raises ValueError for unequal shapes."""
    adapters, saved = adapter_weights(model), load_file(folder / _WEIGHTS)
    if {name: tensor.shape for name, tensor in adapters.items()} != {
        name: tensor.shape for name, tensor in saved.items()
    }:
        raise ValueError(f"the adapters in {folder} are of another lora.rank or other lora.targets")
    with torch.no_grad():
        for name, tensor in adapters.items():
            tensor.copy_(saved[name])


def adapter_weights(model: Qwen2_5_VLForConditionalGeneration) -> dict[str, torch.Tensor]:
    """Returns the tensors of the adapters by peft's file names."""
    return {
        _WRAPPED + name.replace(f".{_NAME}.", "."): parameter.data
        for name, parameter in model.named_parameters()
        if ".lora_" in name
    }

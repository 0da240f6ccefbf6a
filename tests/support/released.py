"""A Qwen2.5-VL folder as on the hub: flat configuration, old weight names, shards, and files of other tools."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from support.qwen_bpe import qwen_tokenizer
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

VOCABULARY = 152064
COMPANIONS = ("preprocessor_config.json",)


def flat_config() -> dict[str, Any]:
    """Returns the released keys in the released places; only the sizes are small."""
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "vision_start_token_id": 151652,
        "vision_end_token_id": 151653,
        "vision_token_id": 151654,
        "image_token_id": 151655,
        "video_token_id": 151656,
        "hidden_act": "silu",
        "hidden_size": 32,
        "initializer_range": 0.02,
        "intermediate_size": 64,
        "max_position_embeddings": 128000,
        "max_window_layers": 28,
        "model_type": "qwen2_5_vl",
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "num_key_value_heads": 1,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.41.2",
        "use_cache": True,
        "use_sliding_window": False,
        "vision_config": {
            "depth": 2,
            "hidden_act": "silu",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "in_chans": 3,
            "out_hidden_size": 32,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "window_size": 112,
            "fullatt_block_indexes": [1],
            "tokens_per_second": 2,
            "temporal_patch_size": 2,
        },
        "rope_scaling": {"type": "mrope", "mrope_section": [4, 2, 2]},
        "vocab_size": VOCABULARY,
    }


def released_name(name: str) -> str:
    """Returns the name of a weight in the released checkpoint."""
    return name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")


def write_released(folder: Path) -> dict[str, torch.Tensor]:
    """Writes the folder with random weights, and returns the weights under the library's names of today."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(flat_config()))
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_pretrained(folder)).bfloat16()
    state = model.state_dict()
    names = sorted(state)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    index: dict[str, Any] = {"metadata": {"total_size": sum(t.nbytes for t in state.values())}, "weight_map": {}}
    for file, own in shards.items():
        save_file({released_name(name): state[name] for name in own}, folder / file, {"format": "pt"})
        index["weight_map"] |= {released_name(name): file for name in own}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    tokenizer = qwen_tokenizer()
    tokenizer.eos_token, tokenizer.pad_token = "<|im_end|>", "<|endoftext|>"
    tokenizer.save_pretrained(folder)
    generation = {"bos_token_id": 151643, "pad_token_id": 151643, "do_sample": True, "eos_token_id": [151645, 151643]}
    (folder / "generation_config.json").write_text(json.dumps(generation | {"temperature": 1e-06}))
    preprocessor = {"min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "temporal_patch_size": 2}
    (folder / "preprocessor_config.json").write_text(
        json.dumps(preprocessor | {"merge_size": 2, "image_processor_type": "Qwen2VLImageProcessor"})
    )
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "{{ messages[0].content }}"}))
    return state

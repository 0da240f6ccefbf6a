"""The published 7B model without weights."""

from __future__ import annotations

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

#: The keys of Qwen2.5-VL-7B-Instruct's config.json that decide the number of parameters.
TEXT = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "max_window_layers": 28,
    "vocab_size": 152064,
    "tie_word_embeddings": False,
}
VISION = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584}


def published_model() -> Qwen2_5_VLForConditionalGeneration:
    """Returns the model on the meta device: a parameter has a shape and takes no memory."""
    config = Qwen2_5_VLConfig(text_config=TEXT, vision_config=VISION, tie_word_embeddings=False)
    with torch.device("meta"):
        return Qwen2_5_VLForConditionalGeneration(config)

"""Greedy turns by transformers alone, of any version: imports nothing of videoseek.

As a script: python plain_generate.py FOLDER PROMPTS.safetensors MAX_NEW_TOKENS. Of prompt N the file holds `N.ids`,
`N.patches`, `N.grids` and `N.seconds`; the result is a JSON list of token ids on stdout.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
import transformers
from safetensors.torch import load_file


def load(folder: str) -> Any:
    return transformers.AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="sdpa").eval()


@torch.no_grad()
def generate(model: Any, prompts: dict[str, torch.Tensor], max_new_tokens: int) -> list[list[int]]:
    """Returns the new ids of each prompt, with the model's own generation settings."""
    turns = []
    for number in range(sum(name.endswith(".ids") for name in prompts)):
        ids, patches, grids, seconds = (prompts[f"{number}.{kind}"] for kind in ("ids", "patches", "grids", "seconds"))
        kinds = {"mm_token_type_ids": torch.where(ids == model.config.video_token_id, 2, 0)[None]}
        output = model.generate(
            input_ids=ids[None],
            attention_mask=torch.ones_like(ids)[None],
            pixel_values_videos=patches,
            video_grid_thw=grids,
            second_per_grid_ts=seconds,
            max_new_tokens=max_new_tokens,
            **(kinds if transformers.__version__ >= "5" else {}),
        )
        turns.append(output[0, len(ids) :].tolist())
    return turns


if __name__ == "__main__":
    folder, prompts, max_new_tokens = sys.argv[1:]
    print(json.dumps(generate(load(folder), load_file(prompts), int(max_new_tokens))))

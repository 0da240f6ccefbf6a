"""Loads and saves model folders: safetensors and JSON only. Code in a checkpoint never runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.utils.logging import disable_progress_bar

from videoseek.config import POSITION_RULES, UsageError
from videoseek.files import give_usual_modes, shipped_folder, write_json
from videoseek.model.attention import install_attention
from videoseek.video.patches import FRAMES_PER_GRID, MEAN, MERGE, PATCH_PIXELS, STD

#: Files of other tools beside weights and tokenizer, with the class and the settings that a source without the file
#: gets.
_PREPROCESSORS: dict[str, dict[str, Any]] = {
    "preprocessor_config.json": {"image_processor_type": "Qwen2VLImageProcessor"},
    # The frames of a clip are chosen already, and the crop tool's quotas set their size.
    "video_preprocessor_config.json": {
        "video_processor_type": "Qwen2VLVideoProcessor",
        "do_sample_frames": False,
        "cap_pixels_per_frame": False,
    },
}
#: Frames of every size that the crop tool makes pass unchanged: one merged token to `video.max_tokens_per_grid`'s 768.
_PIXELS = {"shortest_edge": (PATCH_PIXELS * MERGE) ** 2, "longest_edge": 768 * (PATCH_PIXELS * MERGE) ** 2}
_PATCHES = {
    "processor_class": "Qwen2_5_VLProcessor",
    "patch_size": PATCH_PIXELS,
    "temporal_patch_size": FRAMES_PER_GRID,
    "merge_size": MERGE,
    "image_mean": MEAN,
    "image_std": STD,
    "size": _PIXELS,
    "min_pixels": _PIXELS["shortest_edge"],
    "max_pixels": _PIXELS["longest_edge"],
}


class ModelError(Exception):
    """An unusable model folder. The message names the folder and the missing part."""


def model_folder(name: str, rule: str | None = None) -> Path:
    """Returns the folder of `model=NAME`. `tiny` is the folder shipped with the package. Raises ModelError.

    Raises UsageError unless the model was trained with the position rule `rule`, if both name one.
    """
    folder = shipped_folder("tiny_base", "data/tiny_base") if name == "tiny" else Path(name).expanduser()
    if not (folder / "config.json").is_file():
        raise ModelError(f"model {name!r}: no config.json in {folder}; give 'tiny' or a folder of a Qwen2.5-VL model")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        model_type, trained_rule = config["model_type"], config.get("position_rule")
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"model {name!r}: {folder / 'config.json'} is not a model's configuration: {error}") from error
    if model_type != "qwen2_5_vl":
        raise ModelError(f"model {name!r} is of type {model_type!r}; only 'qwen2_5_vl' is supported")
    if trained_rule is not None and trained_rule not in POSITION_RULES:
        raise ModelError(
            f"model {name!r}: position_rule in {folder / 'config.json'} must be one of {', '.join(POSITION_RULES)}, "
            f"got {trained_rule!r}"
        )
    if None not in (rule, trained_rule) and rule != trained_rule:
        raise UsageError(
            f"position_rule={rule}: model {name!r} was trained with {trained_rule} (its config.json); leave the key out"
        )
    if not any(folder.glob("*.safetensors")):
        raise ModelError(f"model {name!r}: no *.safetensors weights in {folder} (pickled weights are not loaded)")
    return folder


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Loads the tokenizer of a folder. Raises ModelError for an unusable folder."""
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (ValueError, OSError) as error:
        raise ModelError(f"no tokenizer can be made from the files in {folder}") from error


def load_model(folder: Path, dtype: torch.dtype, device: torch.device) -> Qwen2_5_VLForConditionalGeneration:
    """Loads a model with decoder and vision tower on our attention. Raises ModelError for unfit weights."""
    disable_progress_bar()  # the bar would break into our own progress bars
    try:
        model, report = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation="sdpa",
            trust_remote_code=False,
            local_files_only=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # refused below, together with missing weights
            output_loading_info=True,
        )
    except SafetensorError as error:
        raise ModelError(f"the weights in {folder} are damaged: {error}") from error
    unfit = sorted({*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])})
    if unfit:
        raise ModelError(f"{folder} lacks {len(unfit)} weights of the model's shape, among them {', '.join(unfit[:3])}")
    return install_attention(model).to(device)


def save_pretrained(
    model: Qwen2_5_VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    *,
    source: Path | None = None,
    state_dict: dict[str, torch.Tensor] | None = None,
) -> None:
    """Writes a folder for `from_pretrained` of transformers 5 and 4.57 and for servers.

    The folder holds config, safetensors, tokenizer with chat template, and `source`'s preprocessor files, or new ones.
    """
    model.save_pretrained(folder, state_dict=state_dict)
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:  # the Rust library raises a bare Exception for a full disk
        raise OSError(str(error)) from error
    _write_older_keys(folder)
    for name, settings in _PREPROCESSORS.items():
        if source is not None and (source / name).is_file():
            (folder / name).write_bytes((source / name).read_bytes())
        else:
            write_json(folder / name, settings | _PATCHES)
    give_usual_modes(folder)


def _write_older_keys(folder: Path) -> None:
    """Adds the keys of transformers 4.57 beside the keys of 5, and removes our own loading arguments."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    text = config["text_config"]
    rope = dict(text["rope_parameters"])
    text |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
    text["tie_word_embeddings"] = config["tie_word_embeddings"]
    write_json(folder / "config.json", config)
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    for name in ("is_local", "local_files_only"):
        tokenizer.pop(name, None)
    if tokenizer["tokenizer_class"] == "TokenizersBackend":
        tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"  # the same class, by the name in both versions
    write_json(folder / "tokenizer_config.json", tokenizer)


def position_rule(config: Qwen2_5_VLConfig) -> str:
    """Returns the position rule in a model's config.json, or else the rule of the released weights."""
    return getattr(config, "position_rule", "max_all")


def tokens_per_second(config: Qwen2_5_VLConfig) -> float:
    """Returns the number of time-axis positions per second of video."""
    return float(config.vision_config.tokens_per_second)

"""Tests `model=DIR` with a folder in Qwen2.5-VL's released layout: all stages, the real vocabulary, the long prompt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support.commands import forked, numbers, summary, weights
from support.released import COMPANIONS, VOCABULARY, write_released
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

from videoseek.model.load import load_model
from videoseek.samples.clueworld import prepare

SMALL = ["sft.steps=1", "sft.samples_per_step=2", "grpo.steps=1", "grpo.prompts_per_step=1", "grpo.group_size=2"]
SMALL += ["rollout.max_new_tokens_per_turn=8", "evaluate.num_questions=1", "evaluate.samples=1"]
SMALL += ["save_every_steps=1", "keep_checkpoints=1", "grpo.max_resample_rounds=0", "grpo.overlong=keep"]


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("released") / "Qwen2.5-VL-Small"
    state = write_released(folder)
    loaded = load_model(folder, torch.bfloat16, torch.device("cpu")).state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())
    return folder


def assert_loads_as_released(trained: Path, released: Path) -> None:
    model, report = Qwen2_5_VLForConditionalGeneration.from_pretrained(trained, output_loading_info=True)
    assert (set(report["missing_keys"]), set(report["unexpected_keys"])) == (set(), set())
    assert model.lm_head.weight.shape == (VOCABULARY, 32)
    rope = model.config.text_config.rope_parameters
    assert (rope["rope_theta"], rope["mrope_section"]) == (1000000.0, [4, 2, 2])
    for name in COMPANIONS:
        assert (trained / name).read_bytes() == (released / name).read_bytes()
    # The released template writes a tool's results in turns of a kind that the model was not trained on.
    assert "You answer questions about a video." in (trained / "chat_template.jinja").read_text()
    assert not (trained / "chat_template.json").exists()
    text = "<|im_start|>user\nWhat?<|im_end|>"
    both = [AutoTokenizer.from_pretrained(folder)(text).input_ids for folder in (trained, released)]
    assert both[0] == both[1] and both[0][0] == 151644
    generation = [json.loads((folder / "generation_config.json").read_text()) for folder in (trained, released)]
    assert generation[0]["eos_token_id"] == generation[1]["eos_token_id"] == [151645, 151643]


def test_tiny_recipe_with_the_reference_rule(released: Path, tiny: list[str], tmp_path: Path) -> None:
    output_dir = tmp_path / "out"
    size = ["prompt.style=full", "tdam.rule=reference", "tdam.share=1", "rollout.max_context_tokens=2048"]
    forked([*tiny, *SMALL, *size, f"model={released}", "stages=[sft,grpo]", f"output_dir={output_dir}"], tmp_path)
    sft, grpo = numbers(output_dir)
    assert sft["loss"] == pytest.approx(torch.tensor(float(VOCABULARY)).log().item(), rel=0.1)
    assert grpo["completions/mean_length"] > 0
    assert "accuracy/sft_rl" in summary(output_dir)
    assert_loads_as_released(output_dir / "final", released)


def test_published_recipe(released: Path, tmp_path: Path) -> None:
    """bfloat16, ZeRO-3, recomputed activations, the published video quotas: all but the sizes of the 7B run."""
    data = prepare(tmp_path / "cache", "train", 4, seed=0)
    sources = [f"data.{name}=[{data}]" for name in ("sft", "rl", "eval")]
    arguments = ["recipe=sft_rl_7b", *SMALL, *sources, f"model={released}", f"output_dir={tmp_path / 'out'}"]

    plan = forked([*arguments, "--dry-run"], tmp_path)
    assert "dry run: 4 samples" in plan and "about" in plan
    assert list((tmp_path / "out").iterdir()) == []

    forked(arguments, tmp_path)
    assert {tensor.dtype for tensor in weights(tmp_path / "out" / "final").values()} == {torch.bfloat16}
    assert_loads_as_released(tmp_path / "out" / "final", released)

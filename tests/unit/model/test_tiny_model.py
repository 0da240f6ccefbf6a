from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny_world import tiny_world
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from videoseek.model.attention import install_attention
from videoseek.model.tiny import SPECIAL_TOKENS, build_model, build_tokenizer, tiny_config
from videoseek.samples import clueworld


def test_tiny_model_is_the_released_class_with_its_configuration_keys() -> None:
    config = tiny_world().config
    model = build_model(config, 0)
    assert type(model) is Qwen2_5_VLForConditionalGeneration
    released = Qwen2_5_VLConfig()
    for mine, theirs in ((config, released), (config.text_config, released.text_config)):
        assert set(mine.to_dict()) - {"rope_parameters"} <= set(theirs.to_dict()) | {"bos_token_id", "eos_token_id"}
    assert 0.5e6 < sum(p.numel() for p in model.parameters()) < 1.5e6
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_embedding_holds_the_tokenizer_in_whole_blocks() -> None:
    world = tiny_world()
    rows = world.config.text_config.vocab_size
    assert rows % 64 == 0 and 0 <= rows - len(world.vocabulary.tokenizer) < 64


def test_weights_are_a_function_of_the_seed_alone() -> None:
    config = tiny_world().config
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = build_model(config, 1).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    second, other = build_model(config, 1).state_dict(), build_model(config, 2).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_a_configuration_outlives_the_models_built_from_it() -> None:
    config = tiny_config(build_tokenizer([]))
    before = config.to_dict()
    install_attention(build_model(config, 0))
    install_attention(build_model(config, 1))
    assert config.to_dict() == before


@settings(deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_tokenizer_restores_any_text(text: str) -> None:
    tokenizer = tiny_world().vocabulary.tokenizer
    ids = tokenizer(text, split_special_tokens=True).input_ids
    assert tokenizer.decode(ids) == text


def test_phrases_are_single_tokens_and_the_longest_wins() -> None:
    tokenizer = build_tokenizer(["red", "red card", "12", "12.0", "x"])
    pieces = [tokenizer.decode([index]) for index in tokenizer("red card red 12.0 12 x").input_ids]
    assert pieces == ["red card", " ", "red", " ", "12.0", " ", "12", " ", "x"]


def test_special_tokens_keep_their_released_names() -> None:
    tokenizer = build_tokenizer(clueworld.phrases())
    ids = [tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS]
    assert tokenizer("".join(SPECIAL_TOKENS)).input_ids == ids
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.pad_token == "<|endoftext|>"


@pytest.mark.parametrize("key", ["image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"])
def test_token_ids_of_the_configuration_are_the_tokenizers(key: str) -> None:
    world = tiny_world()
    name = {"image_token_id": "image_pad", "video_token_id": "video_pad"}.get(key, key.removesuffix("_token_id"))
    assert getattr(world.config, key) == world.vocabulary.tokenizer.convert_tokens_to_ids(f"<|{name}|>")

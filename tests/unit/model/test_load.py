from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.tiny_world import TinyWorld, row_logits, tiny_world
from transformers import AutoImageProcessor, AutoProcessor, Qwen2_5_VLForConditionalGeneration

from videoseek.batches.packing import pack_documents
from videoseek.model import attention
from videoseek.model.attention import IMPLEMENTATION
from videoseek.model.load import (
    ModelError,
    load_model,
    load_tokenizer,
    model_folder,
    save_pretrained,
    tokens_per_second,
)
from videoseek.model.policy import Policy
from videoseek.video.patches import patchify

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def world() -> TinyWorld:
    return tiny_world()


@pytest.fixture
def folder(world: TinyWorld, tmp_path: Path) -> Path:
    save_pretrained(world.policy().model, world.vocabulary.tokenizer, tmp_path / "model")
    return tmp_path / "model"


def test_saved_weights_come_back_on_our_attention(
    world: TinyWorld, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = Policy(load_model(model_folder(str(folder)), torch.float32, CPU)).eval()
    saved = world.policy()
    for name, tensor in saved.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    blocks, layers = loaded.model.model.visual.blocks, loaded.model.model.language_model.layers
    assert {block.attn.config._attn_implementation for block in blocks} == {IMPLEMENTATION}
    assert {layer.self_attn.config._attn_implementation for layer in layers} == {IMPLEMENTATION}
    calls: list[int] = []
    windows = attention.torch_windows
    monkeypatch.setattr(attention, "torch_windows", lambda *args: calls.append(1) or windows(*args))
    batch = pack_documents(world.episodes()[:2], world.packing)
    logits = row_logits(loaded, batch)
    assert len(calls) == len(blocks)
    assert torch.equal(logits, row_logits(saved, batch))


def test_other_programs_can_load_what_is_saved(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["Qwen2_5_VLForConditionalGeneration"] and config["model_type"] == "qwen2_5_vl"
    assert "videoseek" not in json.dumps(config)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, local_files_only=True)
    assert model.config._attn_implementation != IMPLEMENTATION


def test_preprocessors_of_other_tools_are_written(folder: Path) -> None:
    """A clip's patches from transformers' own processor are ours."""
    images, videos = (
        json.loads((folder / name).read_text())
        for name in ("preprocessor_config.json", "video_preprocessor_config.json")
    )
    assert images["image_processor_type"] == "Qwen2VLImageProcessor"
    assert videos["video_processor_type"] == "Qwen2VLVideoProcessor" and videos["do_sample_frames"] is False
    assert images["processor_class"] == videos["processor_class"] == "Qwen2_5_VLProcessor"
    assert {(kind["patch_size"], kind["temporal_patch_size"], kind["merge_size"]) for kind in (images, videos)} == {
        (14, 2, 2)
    }
    image = np.random.default_rng(0).integers(0, 256, (28, 56, 3), dtype=np.uint8)
    theirs = AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt")
    ours = patchify(torch.from_numpy(image).expand(2, -1, -1, -1))
    assert theirs.image_grid_thw.tolist() == [[1, 2, 4]]
    torch.testing.assert_close(theirs.pixel_values, ours, atol=1e-6, rtol=0)


def test_the_whole_processor_opens_where_torchvision_is(folder: Path) -> None:
    pytest.importorskip("torchvision", reason="transformers' video processors need torchvision")
    assert type(AutoProcessor.from_pretrained(folder)).__name__ == "Qwen2_5_VLProcessor"


def test_keys_of_older_transformers_and_no_arguments_of_ours_are_written(folder: Path, tmp_path: Path) -> None:
    """The same again after loading what was saved: keys neither pile up nor get lost."""
    again = tmp_path / "again"
    save_pretrained(load_model(folder, torch.float32, CPU), load_tokenizer(folder), again, source=folder)
    for saved in (folder, again):
        text = json.loads((saved / "config.json").read_text())["text_config"]
        rope = {"mrope_section": [8, 4, 4], "rope_type": "default"}
        assert text["rope_parameters"] == rope | {"rope_theta": 10000.0}
        assert (text["rope_scaling"], text["rope_theta"], text["tie_word_embeddings"]) == (rope, 10000.0, True)
        tokenizer = json.loads((saved / "tokenizer_config.json").read_text())
        assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
        assert not {"is_local", "local_files_only"} & set(tokenizer)


def test_others_can_read_all_files_unless_the_umask_forbids_it(world: TinyWorld, tmp_path: Path) -> None:
    for umask, mode in ((0o022, 0o644), (0o027, 0o640)):
        before = os.umask(umask)
        try:
            folder = tmp_path / oct(umask)
            save_pretrained(world.policy().model, world.vocabulary.tokenizer, folder)
        finally:
            os.umask(before)
        assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {mode}


def test_tokenizer_comes_back(world: TinyWorld, folder: Path) -> None:
    text = "<think>red at 4</think>\n<answer>ü</answer>"
    tokenizer = load_tokenizer(folder)
    assert tokenizer(text).input_ids == world.vocabulary.tokenizer(text).input_ids
    assert len(tokenizer) == len(world.vocabulary.tokenizer)


def test_loading_sets_dtype_and_reads_time_scale(folder: Path) -> None:
    model = load_model(folder, torch.bfloat16, CPU)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert tokens_per_second(model.config) == 2.0


def test_given_weights_are_written_and_companions_copied(world: TinyWorld, folder: Path, tmp_path: Path) -> None:
    (folder / "preprocessor_config.json").write_text('{"patch_size": 14}')
    (folder / "notes.txt").write_text("mine")
    model = load_model(folder, torch.float32, CPU)
    weights = {name: torch.full_like(tensor, 0.5) for name, tensor in model.state_dict().items()}
    save_pretrained(model, world.vocabulary.tokenizer, tmp_path / "copy", source=folder, state_dict=weights)
    again = load_model(tmp_path / "copy", torch.float32, CPU)
    assert all(bool((tensor == 0.5).all()) for tensor in again.state_dict().values())
    assert (tmp_path / "copy/preprocessor_config.json").read_text() == '{"patch_size": 14}'
    assert not (tmp_path / "copy/notes.txt").exists()


def edit_config(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)


BAD_RULE = '{"model_type": "qwen2_5_vl", "position_rule": "v6"}'


def only_pickles(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: edit_config(folder, "{"), "not a model's configuration"),
        (lambda folder: edit_config(folder, "[]"), "not a model's configuration"),
        (lambda folder: edit_config(folder, "{}"), "not a model's configuration"),
        (lambda folder: edit_config(folder, '{"model_type": "llama"}'), "type 'llama'; only 'qwen2_5_vl'"),
        (lambda folder: edit_config(folder, BAD_RULE), "position_rule in .* must be one of max_all, hf5, got 'v6'"),
        (only_pickles, "no \\*.safetensors weights"),
    ],
    ids=[
        "no config",
        "broken config",
        "config is a list",
        "config without type",
        "other model",
        "unknown rule",
        "pickles only",
    ],
)
def test_folder_that_is_no_model_is_named(folder: Path, damage: object, said: str) -> None:
    damage(folder)
    with pytest.raises(ModelError, match=said) as error:
        model_folder(str(folder))
    assert str(folder) in str(error.value)


def test_unknown_model_name_is_refused() -> None:
    with pytest.raises(ModelError, match="'qwen-7b': no config.json .* give 'tiny' or a folder"):
        model_folder("qwen-7b")


def rewrite(folder: Path, name: str, tensor: torch.Tensor | None) -> None:
    """One weight replaced, or left out."""
    weights = load_file(folder / "model.safetensors")
    del weights[name]
    if tensor is not None:
        weights[name] = tensor
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


NORM = "model.norm.weight"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: rewrite(folder, NORM, None), "lacks 1 weights .* among them model.language_model.norm.weight"),
        (lambda folder: rewrite(folder, NORM, torch.ones(7)), "lacks 1 weights of the model's shape"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"junk" * 99), "are damaged"),
        (lambda folder: cut_in_half(folder / "model.safetensors"), "are damaged"),
    ],
    ids=["missing", "other shape", "junk", "cut short"],
)
def test_weights_that_do_not_fit_are_named(folder: Path, damage: object, said: str) -> None:
    damage(folder)
    with pytest.raises(ModelError, match=said):
        load_model(folder, torch.float32, CPU)


def cut_in_half(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def test_folder_without_tokenizer_is_named(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="no tokenizer can be made"):
        load_tokenizer(folder)

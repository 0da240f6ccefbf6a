"""transformers' own `generate` against our engine: the same positions, and the same greedy turns."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support import plain_generate
from support.tiny_world import TOKENS_PER_SECOND, memorised, native_engine, tiny_world
from torch import nn
from transformers import AutoModelForImageTextToText, AutoTokenizer, Qwen2_5_VLModel

from videoseek import use_positions
from videoseek.batches.positions import mrope_positions
from videoseek.config import POSITION_RULES
from videoseek.model.load import save_pretrained
from videoseek.model.tiny import build_tokenizer, tiny_config
from videoseek.rollout.sampler import SamplingSettings
from videoseek.rollout.setup import generation_config
from videoseek.trajectory.chat_template import chat_template
from videoseek.types import Clip, Episode
from videoseek.video.decode import read_frames
from videoseek.video.patches import patchify

MAX_NEW_TOKENS = 24
DOCUMENT = Path(__file__).parents[3] / "docs/saved_folders.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained model as a run saves it."""
    path, world = tmp_path_factory.mktemp("saved"), tiny_world()
    policy, _ = memorised()
    world.vocabulary.tokenizer.chat_template = chat_template(world.environment.fmt)
    policy.model.generation_config = generation_config(policy.model.generation_config, world.vocabulary)
    save_pretrained(policy.model, world.vocabulary.tokenizer, path)
    return path


@pytest.fixture(scope="module")
def episodes() -> list[Episode]:
    """Greedy episodes of our engine."""
    engine = native_engine(memorised()[0], tiny_world().environment)
    settings = SamplingSettings(temperature=0.0, max_new_tokens_per_turn=MAX_NEW_TOKENS)
    return [episode for [episode] in engine.rollout(tiny_world().samples, 1, 0, settings)]


def prompts_and_turns(episodes: list[Episode]) -> tuple[dict[str, torch.Tensor], list[list[int]]]:
    """What transformers gets for every turn of the model, and the turns."""
    prompts: dict[str, torch.Tensor] = {}
    turns: list[list[int]] = []
    for episode in episodes:
        for turn in episode.turns:
            if turn.role != "assistant":
                continue
            ids = torch.tensor(episode.token_ids[: turn.start])
            clips = episode.clips[: int((ids == tiny_world().vocabulary.vision_start).sum())]
            prompts |= {
                f"{len(turns)}.ids": ids,
                f"{len(turns)}.patches": torch.cat([patchify(read_frames(clip)) for clip in clips]),
                f"{len(turns)}.grids": torch.tensor([clip.grid_thw for clip in clips]),
                f"{len(turns)}.seconds": torch.tensor([clip.second_per_grid for clip in clips]),
            }
            turns.append(episode.token_ids[turn.start : turn.end])
    return prompts, turns


def test_generate_gives_the_engines_turns(folder: Path, episodes: list[Episode]) -> None:
    """Without `use_positions` it does not: the test can tell the rules apart."""
    prompts, turns = prompts_and_turns(episodes)
    assert len(turns) > 1.5 * len(episodes) and max(len(episode.clips) for episode in episodes) > 2
    model = plain_generate.load(str(folder))
    assert plain_generate.generate(model, prompts, MAX_NEW_TOKENS) != turns
    use_positions(model)
    assert plain_generate.generate(model, prompts, MAX_NEW_TOKENS) == turns


@pytest.mark.tf457
def test_transformers_4_gives_the_engines_turns_by_itself(
    folder: Path, episodes: list[Episode], tmp_path: Path
) -> None:
    prompts, turns = prompts_and_turns(episodes)
    save_file(prompts, tmp_path / "prompts")
    script = [os.environ["VIDEOSEEK_TF457_PYTHON"], plain_generate.__file__, folder, tmp_path / "prompts"]
    done = subprocess.run([*map(str, script), str(MAX_NEW_TOKENS)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == turns


def test_documented_snippet_gives_the_engines_first_turn(
    folder: Path, episodes: list[Episode], capsys: pytest.CaptureFixture[str]
) -> None:
    episode = episodes[0]
    clip, question = episode.clips[0], episode.turns[1].text.removeprefix("<video>")
    given, code = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(given, names)
    assert names["frames"].dtype == torch.uint8 and names["frames"].ndim == 4
    assert names.keys() - {"__builtins__", "torch"} == {"folder", "frames", "fps", "text"}
    names |= {"folder": folder, "frames": read_frames(clip), "fps": clip.sample_fps, "text": question}
    exec(code, names)
    assert capsys.readouterr().out == episode.assistant_texts()[0] + "<|im_end|>\n"


@pytest.mark.parametrize("rule", POSITION_RULES)
def test_positions_of_padded_batches_with_images_are_ours(rule: str) -> None:
    config = tiny_config(build_tokenizer([]))
    config.position_rule = rule
    with torch.device("meta"):
        model = Qwen2_5_VLModel(config)
    use_positions(model)
    image, early, late = (
        Clip("v", 0.0, 8.0, tuple(map(float, range(frames))), height, width, fps)
        for frames, height, width, fps in ((2, 56, 84, 1.0), (8, 28, 56, 0.3), (4, 84, 28, 0.7))
    )
    rows = [[1] * 3 + [5] * 6 + [1] + [7] * early.num_tokens + [1] * 2, [7] * late.num_tokens + [1] * 4]
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    kinds = torch.where(ids == 7, 2, torch.where(ids == 5, 1, 0))
    positions, beyond = model.get_rope_index(
        ids,
        kinds,
        image_grid_thw=torch.tensor([image.grid_thw]),
        video_grid_thw=torch.tensor([early.grid_thw, late.grid_thw]),
        second_per_grid_ts=[early.second_per_grid, late.second_per_grid],
        attention_mask=(ids != 0).long(),
    )
    for number, (row, clips) in enumerate(zip(rows, ([image, early], [late]), strict=True)):
        pads = [7 if token == 5 else token for token in row]
        wanted, following = mrope_positions(pads, clips, 7, TOKENS_PER_SECOND, rule=rule)
        assert torch.equal(positions[:, number, width - len(row) :], wanted)
        assert beyond[number].item() == following - len(row)


def test_other_models_are_refused() -> None:
    with pytest.raises(ValueError, match="wants a Qwen2.5-VL model of transformers, got Linear"):
        use_positions(nn.Linear(1, 1))


def test_auto_classes_open_the_folder(folder: Path) -> None:
    assert type(AutoModelForImageTextToText.from_pretrained(folder)).__name__ == "Qwen2_5_VLForConditionalGeneration"
    assert AutoTokenizer.from_pretrained(folder).chat_template == chat_template(tiny_world().environment.fmt)

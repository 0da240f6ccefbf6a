"""A model inside another harness: its words, our episodes; and the contract of VLMEvalKit's base class."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support.benchmarks import Films
from support.scripted_engine import ScriptedEngine, scripted

from videoseek.config import UsageError
from videoseek.evaluation import harness
from videoseek.evaluation.harness import HarnessModel, only_film
from videoseek.evaluation.prompts import SYSTEM
from videoseek.trajectory.formats import FORMATS
from videoseek.types import Call, Sample

FORMAT = FORMATS["grounding"]("brief")
TURNS = [FORMAT.render_turn("look", Call(4, 8, "medium"), None), FORMAT.render_turn("so", None, "B")]
KEYS: dict[str, object] = {"recipe": "sft_rl", "device": "cpu"}


@pytest.fixture
def film(tmp_path: Path) -> str:
    return str(Films(tmp_path).film)


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[ScriptedEngine]:
    """Puts scripted replies in the place of a model: a crop and an answer, or reasoning and the answer in one turn."""
    made: list[ScriptedEngine] = []

    def policy(sample: Sample, _: int) -> Sequence[str]:
        return TURNS if made[-1].environment.max_turns > 1 else ["<think>A?</think> B"]

    monkeypatch.setattr(harness, "open_model", lambda config, folder, device: scripted(config, policy, made))
    return made


@pytest.mark.parametrize(("mode", "turns"), [("tool", 2), ("direct", 1), ("think", 1)])
def test_the_answer_of_an_episode_in_the_words_of_the_harness(
    mode: str, turns: int, film: str, engines: list[ScriptedEngine]
) -> None:
    model = HarnessModel("lmms", "Be kind.", "tiny", KEYS | {"evaluate.mode": mode})
    assert model.answer([(film, "What falls?"), ("gone.mp4", "Why?"), (film, "Who?")]) == ["B", "", "B"]
    assert model.answer([(film, "Where?")]) == ["B"]
    episodes = engines[0].seen
    texts = [[turn.text for turn in episode.turns] for episode in episodes]
    assert [len(episode.assistant_texts()) for episode in episodes] == [turns] * 3
    system = {"tool": FORMAT.system_prompt(), "direct": "Be kind.", "think": SYSTEM["think"]}[mode]
    assert {text[0] for text in texts} == {system}
    assert [text[1].splitlines()[1:] for text in texts] == [["What falls?"], ["Who?"], ["Where?"]]


def test_keys_of_the_harness_are_refused() -> None:
    with pytest.raises(UsageError, match="evaluate.votes is no key of a model in another harness"):
        HarnessModel("lmms", "", "tiny", KEYS | {"evaluate.votes": 3})


@pytest.mark.parametrize(("media", "kinds"), [([], "none"), (["a.mp4", "b.mp4"], "str, str"), ([3], "int")])
def test_a_question_has_one_film(media: list[Any], kinds: str) -> None:
    with pytest.raises(UsageError, match=f"this one has {kinds}"):
        only_film(media)


class BaseModel:
    """The contract of VLMEvalKit's base class: parts of allowed types, with a type and a value, reach the model."""

    INTERLEAVE = False
    allowed_types = ["text", "image"]

    def use_custom_prompt(self, dataset: str) -> bool:
        return False

    def generate(self, message: list[dict[str, str]], dataset: str | None = None) -> str:
        assert all({"type", "value"} <= part.keys() and part["type"] in self.allowed_types for part in message)
        return self.generate_inner(message, dataset)  # type: ignore[attr-defined, no-any-return]


class Dataset:
    """The contract of its data sets of films: with `video_llm` a prompt holds the film, else pictures."""

    def __init__(self, film: str) -> None:
        self.film = film

    def build_prompt(self, line: int, video_llm: bool) -> list[dict[str, str]]:
        assert video_llm
        return [{"type": "video", "value": self.film}, {"type": "text", "value": f"Question {line}?"}]


def test_the_adapter_keeps_vlmevalkits_contract(
    film: str, engines: list[ScriptedEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = ModuleType("vlmeval.vlm.base")
    vars(base)["BaseModel"] = BaseModel
    for name in ("vlmeval", "vlmeval.vlm"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "vlmeval.vlm.base", base)
    monkeypatch.delitem(sys.modules, "videoseek.evaluation.vlmevalkit_plug", raising=False)
    plug = importlib.import_module("videoseek.evaluation.vlmevalkit_plug")
    model = plug.VideoSeek(model="tiny", **KEYS, **{"evaluate.mode": "direct"})
    assert not model.use_custom_prompt("Video-MME")
    message = Dataset(film).build_prompt(7, video_llm=model.VIDEO_LLM)
    assert model.generate(message, dataset="Video-MME") == "B"
    (episode,) = engines[0].seen
    assert episode.turns[0].text == "" and episode.turns[1].text.endswith("\nQuestion 7?")
    monkeypatch.delitem(sys.modules, "videoseek.evaluation.vlmevalkit_plug")

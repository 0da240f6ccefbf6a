"""The chat template of saved folders against the builder: the same text, the same ids, and calls as sampled."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from support.qwen_bpe import qwen_tokenizer
from support.tiny_world import TinyWorld, look, tiny_world

from videoseek.trajectory.builder import CLIP_MARK
from videoseek.trajectory.chat_template import chat_template
from videoseek.trajectory.formats import FORMATS
from videoseek.trajectory.vocabulary import Vocabulary
from videoseek.types import Episode

CALL = (
    '<tool_call>{"name": "crop_video", "arguments": {"temporal_segment": [%s], "sampling_strategy": "fine"}}'
    "</tool_call>"
)
TURNS = (
    f"<think>Größe?</think>\n{CALL % '0, 4'}\n{CALL % '8, 12'}\n{CALL % '500, 504'}\n{CALL % '600, 604'}",
    "<think>hm</think>",
    f"<think>again</think>\n{CALL % '12, 16'}",
    "<think>so</think>\n<answer>A.</answer>",
)


@pytest.fixture(scope="module")
def world() -> TinyWorld:
    return tiny_world()


@pytest.fixture(params=["brief", "full"])
def hermes(world: TinyWorld, request: pytest.FixtureRequest) -> tuple[Vocabulary, Episode, str]:
    """An episode of many calls in Qwen's own vocabulary, and the template of its run."""
    fmt = FORMATS["hermes"](request.param)
    environment = replace(
        world.environment, vocabulary=Vocabulary(qwen_tokenizer(), 152064), fmt=fmt, max_context_tokens=4096
    )
    episode = environment.replay(replace(world.samples[0], turns=TURNS))
    assert len(episode.clips) == 4 and len(episode.calls) == 6
    return environment.vocabulary, episode, chat_template(fmt)


def content(text: str) -> list[dict[str, str]]:
    """The text and the videos of a turn, as users of processors write them."""
    first, *others = text.split(CLIP_MARK)
    parts = [{"type": "text", "text": first}] if first else []
    for other in others:
        parts += [{"type": "video"}, {"type": "text", "text": other}]
    return parts


def messages(episode: Episode) -> list[dict[str, Any]]:
    """The conversation; what the tool says comes in the role `tool`."""
    said = [{"role": turn.role, "content": turn.text} for turn in episode.turns]
    users = [message for message in said if message["role"] == "user"]
    for number, message in enumerate(users):
        message |= {"role": "tool" if number else "user", "content": content(message["content"])}
    return said


def render(vocabulary: Vocabulary, template: str, said: list[dict[str, Any]], **options: Any) -> str:
    return vocabulary.tokenizer.apply_chat_template(said, chat_template=template, tokenize=False, **options)


def test_template_gives_the_builders_ids(hermes: tuple[Vocabulary, Episode, str]) -> None:
    """To the token, also where two observations without a clip meet and share a piece (`.N`)."""
    vocabulary, episode, template = hermes
    text = render(vocabulary, template, messages(episode))
    head, *tails = text.split("<|video_pad|>")
    clips = zip(episode.clips, tails, strict=True)
    expanded = head + "".join("<|video_pad|>" * clip.num_tokens + tail for clip, tail in clips)
    assert vocabulary.tokenizer(expanded.removesuffix("\n")).input_ids == episode.token_ids


def test_system_prompt_of_the_run_comes_first_by_itself(hermes: tuple[Vocabulary, Episode, str]) -> None:
    vocabulary, episode, template = hermes
    said = messages(episode)
    assert render(vocabulary, template, said[1:]) == render(vocabulary, template, said)
    other = render(vocabulary, template, [{"role": "system", "content": "Hello."}, *said[1:]])
    assert other.startswith("<|im_start|>system\nHello.<|im_end|>\n<|im_start|>user\n<|vision_start|>")


def test_every_prefix_stays(hermes: tuple[Vocabulary, Episode, str]) -> None:
    vocabulary, episode, template = hermes
    said = messages(episode)
    whole = render(vocabulary, template, said)
    for number, message in enumerate(said):
        if message["role"] == "assistant":
            assert whole.startswith(render(vocabulary, template, said[:number], add_generation_prompt=True))
            assert whole.startswith(render(vocabulary, template, said[: number + 1]))


@pytest.mark.parametrize("as_text", [True, False], ids=["arguments as text", "arguments as values"])
def test_tool_calls_of_a_server_are_written_as_sampled(hermes: tuple[Vocabulary, Episode, str], as_text: bool) -> None:
    """A server hands calls to its client apart from the text, and each result comes as a message of its own."""
    vocabulary, episode, template = hermes
    said, served = messages(episode), []
    for message in said:
        head, *calls = message["content"].split("<tool_call>") if message["role"] == "assistant" else [""]
        if calls:
            functions = [json.loads(call.split("</tool_call>")[0]) for call in calls]
            for function in functions if as_text else []:
                function["arguments"] = json.dumps(function["arguments"])
            tool_calls = [{"type": "function", "function": function} for function in functions]
            message = {"role": "assistant", "content": head, "tool_calls": tool_calls}
        served += [message] if message["role"] != "tool" else [message | {"content": [p]} for p in message["content"]]
    assert render(vocabulary, template, served) == render(vocabulary, template, said)


def test_grounding_calls_are_written_as_sampled(world: TinyWorld) -> None:
    template = chat_template(FORMATS["grounding"]("full"))
    think, call = look(4, 8).split("<grounding>")
    function = {"name": "crop_video", "arguments": json.loads(call.removesuffix("</grounding>"))}
    tail = [{"role": "assistant", "content": think, "tool_calls": [{"function": function}]}]
    assert render(world.vocabulary, template, tail).endswith(f"<|im_start|>assistant\n{look(4, 8)}<|im_end|>\n")

from __future__ import annotations

import pytest
from support.qwen_bpe import qwen_tokenizer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from videoseek.batches.masks import GLOBAL, token_masks
from videoseek.trajectory.formats import FORMATS
from videoseek.trajectory.roles import assistant_roles, token_bytes
from videoseek.types import Role, TurnKind

GROUNDING = FORMATS["grounding"]()
PAYLOAD = '{"temporal_segment": [10, 20.5], "sampling_strategy": "fine"}'
CALL = f"<grounding>{PAYLOAD}</grounding>"


def tokens_by_role(text: str, name: str = "grounding") -> tuple[dict[Role, list[str]], TurnKind]:
    tokenizer = qwen_tokenizer()
    pieces = token_bytes(tokenizer, tokenizer(text)["input_ids"])
    assert b"".join(pieces) == text.encode()
    roles, kind = assistant_roles(pieces, FORMATS[name]())
    found: dict[Role, list[str]] = {}
    for piece, role in zip(pieces, roles, strict=True):
        found.setdefault(Role(role), []).append(piece.decode("utf-8", "replace"))
    return found, kind


@pytest.mark.parametrize(
    ("text", "answer_tokens"),
    [
        ("<think>x</think>\n<answer>A</answer>", [">A"]),
        ("<think>x</think>\n<answer>H</answer>", [">H"]),
        ("<think>x</think>\n<answer>A.</answer>", [">A", ".</"]),
        ("<think>x</think>\n<answer>(A)</answer>", [">(", "A", ")</"]),
        ("<think>x</think>\n<answer> A </answer>", [" A", " </"]),
        ("<think>x</think>\n<answer>\nA\n</answer>", [">\n", "A", "\n"]),
        ("<think>x</think>\n<answer>Yes</answer>", ["Yes"]),
        ("<think>x</think>\n<answer>42%</answer>", ["4", "2", "%</"]),
        ("<think>x</think>\n<answer>The red card.</answer>", [">The", " red", " card", ".</"]),
        ("<think>x</think><answer>A</answer>", [">A"]),
        ("<think>x</think>\n<answer>第四</answer>", ["第四"]),
        ("<think>x</think>\n<answer></answer>", []),
        ("<think>x</think>\n<answer>A", [">A"]),
    ],
)
def test_answer_tokens_of_the_qwen_vocabulary(text: str, answer_tokens: list[str]) -> None:
    found, kind = tokens_by_role(text)
    assert found.get(Role.ANSWER, []) == answer_tokens
    assert kind == TurnKind.ANSWER


@pytest.mark.parametrize("final_space", ["", " ", "\n"], ids=["tight", "space", "newline"])
@pytest.mark.parametrize("gap", ["\n", ""], ids=["newline", "no newline"])
def test_call_tokens_cover_the_whole_payload(final_space: str, gap: str) -> None:
    found, kind = tokens_by_role(f"<think>look</think>{gap}<grounding>{PAYLOAD}{final_space}</grounding>")
    covered = "".join(found[Role.CALL])
    assert PAYLOAD + final_space in covered
    # Fused neighbours may hang over by the brackets of a tag, never by a letter of one.
    assert set(covered.replace(PAYLOAD + final_space, "", 1)) <= set("></")
    assert "".join(found[Role.THINK]).strip("></") == "look"
    assert kind == TurnKind.SEEK


def test_two_calls_in_a_turn_are_both_found() -> None:
    call = '<tool_call>{"name": "crop_video", "arguments": {}}</tool_call>'
    found, kind = tokens_by_role(f"<think>x</think>\n{call}\n{call}", "hermes")
    assert "".join(found[Role.CALL]).count("crop_video") == 2
    assert found[Role.TAG].count("<tool_call>") == 2
    assert kind == TurnKind.SEEK


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("just prose", TurnKind.NONE),
        ("", TurnKind.NONE),
        ("<think>only", TurnKind.NONE),
        ("<grounding>broken", TurnKind.SEEK),
        (f"{CALL}<answer>A</answer>", TurnKind.SEEK),
        ("<think><grounding></think><answer>A</answer>", TurnKind.ANSWER),
    ],
)
def test_odd_turns_have_the_expected_roles(text: str, kind: TurnKind) -> None:
    assert tokens_by_role(text)[1] == kind


def test_plain_prose_has_the_role_tag() -> None:
    assert tokens_by_role("just prose")[0].keys() == {Role.TAG}


def test_an_answer_inside_the_reasoning_is_reasoning() -> None:
    found, _ = tokens_by_role("<think>perhaps <answer>B</answer> no</think>\n<answer>A</answer>")
    assert found[Role.ANSWER] == [">A"]


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([b"<think>a</think><answer>B</answer>"], [Role.ANSWER]),
        ([b"<think>a</think><grounding>{", b"}</grounding>"], [Role.CALL, Role.CALL]),
        ([b"<think>", b"a</", b"think>"], [Role.TAG, Role.THINK, Role.TAG]),
        ([b"<think>\xf0\x9f", b"\x98\x80", b"", b"</think>"], [Role.THINK, Role.THINK, Role.TAG, Role.TAG]),
    ],
    ids=["all fused", "answer over call over think", "tag halves", "split character"],
)
def test_a_token_takes_the_role_that_it_touches(pieces: list[bytes], expected: list[Role]) -> None:
    assert assistant_roles(pieces, GROUNDING)[0] == expected


@pytest.mark.parametrize("letter", list("ABCDEFGH"))
@pytest.mark.parametrize("gap", ["\n", ""], ids=["newline", "no newline"])
def test_the_row_that_predicts_the_letter_is_masked(letter: str, gap: str) -> None:
    tokenizer = qwen_tokenizer()
    ids = tokenizer(f"<think>x</think>{gap}<answer>{letter}</answer>")["input_ids"]
    pieces = token_bytes(tokenizer, ids)
    roles, kind = assistant_roles(pieces, GROUNDING)
    video = [int(Role.GLOBAL_VIDEO), int(Role.CROP_VIDEO), int(Role.OBSERVATION)]
    _, visible = token_masks([0, 0, 0, *ids], video + roles, [0, 0, 0] + [kind] * len(ids), "spans")
    predicting = 3 + next(index for index, piece in enumerate(pieces) if piece == f">{letter}".encode()) - 1
    assert not visible[predicting] & GLOBAL
    assert [row for row in range(len(visible)) if not visible[row] & GLOBAL] == [predicting]


def test_bytes_of_tokens_join_to_the_text() -> None:
    tokenizer = qwen_tokenizer()
    text = "<|im_start|>čaj 茶 🙂\x00\t\x7f\u00ad<|vision_start|><tool_call>"
    assert b"".join(token_bytes(tokenizer, tokenizer(text)["input_ids"])).decode() == text


def test_an_id_without_a_token_has_no_bytes() -> None:
    assert token_bytes(qwen_tokenizer(), [151_900, 32]) == [b"", b"A"]


def test_a_tokenizer_that_is_not_byte_level_is_refused() -> None:
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"čaj 茶": 0}, unk_token=None)))
    with pytest.raises(ValueError, match="not byte-level BPE"):
        token_bytes(words, [0])

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.qwen_bpe import qwen_tokenizer

from videoseek.batches.masks import ALL_VISIBLE, RULES, ReferenceTags, selects, token_masks
from videoseek.trajectory.formats import FORMATS
from videoseek.trajectory.roles import assistant_roles, token_bytes
from videoseek.types import Role, TurnKind

OURS = [rule for rule in RULES if rule != "reference"]
TOKENS = st.lists(st.tuples(st.sampled_from(list(Role)), st.sampled_from(list(TurnKind))), max_size=24)


def dense(roles: list[int], kinds: list[int], rule: str) -> np.ndarray:
    """The rules as prose, one pair of row and key at a time."""
    size = len(roles)
    seen = np.zeros((size, size), dtype=bool)
    for row in range(size):
        predicted = row + 1 if row + 1 < size else None
        crop_so_far = any(roles[index] == Role.CROP_VIDEO for index in range(row + 1))
        for key in range(row + 1):
            hidden = False
            if predicted is not None and crop_so_far and rule != "off":
                if rule == "spans":
                    seeking, answering = roles[predicted] == Role.CALL, roles[predicted] == Role.ANSWER
                else:
                    seeking, answering = kinds[predicted] == TurnKind.SEEK, kinds[predicted] == TurnKind.ANSWER
                hidden |= seeking and roles[key] == Role.CROP_VIDEO
                hidden |= answering and roles[key] == Role.GLOBAL_VIDEO
            if rule == "isolated" and roles[row] == Role.CROP_VIDEO and roles[key] == Role.GLOBAL_VIDEO:
                hidden = True
            seen[row, key] = not hidden
    return seen


def expand(key_class: np.ndarray, visible: np.ndarray) -> np.ndarray:
    return np.tril((visible[:, None] & key_class[None, :]) != 0)


@given(tokens=TOKENS, rule=st.sampled_from(OURS))
def test_masks_equal_the_rule_written_as_a_table(tokens: list[tuple[Role, TurnKind]], rule: str) -> None:
    roles, kinds = [int(role) for role, _ in tokens], [int(kind) for _, kind in tokens]
    key_class, visible = token_masks(list(range(len(roles))), roles, kinds, rule)
    assert key_class.dtype == visible.dtype == np.int32
    assert key_class.shape == visible.shape == (len(roles),)
    np.testing.assert_array_equal(expand(key_class, visible), dense(roles, kinds, rule))


@given(tokens=TOKENS, rule=st.sampled_from(OURS), cut=st.integers(0, 24))
def test_a_row_depends_on_nothing_after_the_token_it_predicts(
    tokens: list[tuple[Role, TurnKind]], rule: str, cut: int
) -> None:
    roles, kinds = [int(role) for role, _ in tokens], [int(kind) for _, kind in tokens]
    whole = token_masks(list(range(len(roles))), roles, kinds, rule)
    part = token_masks(list(range(len(roles)))[:cut], roles[:cut], kinds[:cut], rule)
    length = max(0, min(cut, len(roles)) - 1)
    np.testing.assert_array_equal(whole[0][:length], part[0][:length])
    np.testing.assert_array_equal(whole[1][:length], part[1][:length])


R, K = Role, TurnKind
# system, question, overview, think+call, crop, think+call, crop, think+answer
LAYOUT = (
    [(R.SYSTEM, K.NONE), (R.GLOBAL_VIDEO, K.NONE), (R.QUESTION, K.NONE), (R.THINK, K.SEEK), (R.CALL, K.SEEK)]
    + [(R.OBSERVATION, K.NONE), (R.CROP_VIDEO, K.NONE), (R.THINK, K.SEEK), (R.CALL, K.SEEK), (R.TAG, K.SEEK)]
    + [(R.CROP_VIDEO, K.NONE), (R.OBSERVATION, K.NONE), (R.THINK, K.ANSWER), (R.ANSWER, K.ANSWER), (R.TAG, K.ANSWER)]
)


@pytest.mark.parametrize(
    ("rule", "no_crop", "no_global"),
    [
        ("off", [], []),
        ("spans", [7], [12]),
        ("turns", [6, 7, 8], [11, 12, 13]),
        ("isolated", [6, 7, 8], [6, 10, 11, 12, 13]),
    ],
)
def test_rows_of_a_two_call_trajectory(rule: str, no_crop: list[int], no_global: list[int]) -> None:
    roles, kinds = [int(role) for role, _ in LAYOUT], [int(kind) for _, kind in LAYOUT]
    key_class, visible = token_masks(range(len(roles)), roles, kinds, rule)
    assert [row for row, bits in enumerate(visible) if not bits & 4] == no_crop
    assert [row for row, bits in enumerate(visible) if not bits & 2] == no_global
    assert np.flatnonzero(key_class == 2).tolist() == [1]
    assert np.flatnonzero(key_class == 4).tolist() == [6, 10]


@pytest.mark.parametrize("rule", OURS)
def test_a_direct_answer_sees_the_video(rule: str) -> None:
    roles = [Role.GLOBAL_VIDEO, Role.THINK, Role.ANSWER, Role.TAG]
    kinds = [TurnKind.NONE] + [TurnKind.ANSWER] * 3
    assert token_masks(range(4), roles, kinds, rule)[1].tolist() == [ALL_VISIBLE] * 4


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (([1], [1], [0], "span"), "'span' is not one of off, spans"),
        (([1, 2], [1], [0], "off"), "must agree"),
        (([1], [1], [0], "reference"), "needs reference_tags"),
    ],
)
def test_bad_arguments_are_named(arguments: tuple, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        token_masks(*arguments)


TAGS = ReferenceTags(900, 901, (27, 9217), (522, 9217), (27, 1951, 287), (5361, 1951, 287))


def test_reference_tags_are_those_of_the_public_code() -> None:
    tags = ReferenceTags.from_vocabulary(qwen_tokenizer().get_vocab())
    assert tags == ReferenceTags(151652, 151653, (27, 9217), (522, 9217), (27, 1951, 287), (5361, 1951, 287))
    with pytest.raises(ValueError, match="needs Qwen's vocabulary, which has the token '<'"):
        ReferenceTags.from_vocabulary({"<|vision_start|>": 0, "<|vision_end|>": 1})


def document(*turns: str) -> tuple[list[int], list[int], list[int], list[bytes]]:
    """A video, then each turn followed by another video: ids, roles, turn kinds and bytes of Qwen tokens."""
    tokenizer, fmt = qwen_tokenizer(), FORMATS["grounding"]()
    ids, roles, kinds = [151652, 151656, 151656, 151653], [9, 3, 3, 9], [0] * 4
    roles[0] = roles[3] = int(Role.QUESTION)
    for index, turn in enumerate(turns):
        if index:
            ids += [151652, 151656, 151653]
            roles += [int(Role.OBSERVATION), int(Role.CROP_VIDEO), int(Role.OBSERVATION)]
            kinds += [0] * 3
        content = tokenizer(turn)["input_ids"]
        turn_roles, kind = assistant_roles(token_bytes(tokenizer, content), fmt)
        ids, roles, kinds = ids + content, roles + turn_roles, kinds + [int(kind)] * len(content)
    return ids, roles, kinds, token_bytes(tokenizer, ids)


CALL = '<think>x</think>\n<grounding>{"temporal_segment": [1, 2], "sampling_strategy": "fine"}</grounding>\n'
SPACED = CALL.replace('"}', '" }').replace("}</", "} </")


def answer(text: str, gap: str = "\n") -> str:
    return f"<think>y</think>{gap}<answer>{text}</answer>\n"


def hidden(turns: list[str], bit: int) -> list[str]:
    """The row tokens that the reference rule keeps from seeing one class, in order."""
    ids, roles, kinds, pieces = document(*turns)
    tags = ReferenceTags.from_vocabulary(qwen_tokenizer().get_vocab())
    _, visible = token_masks(ids, roles, kinds, "reference", reference_tags=tags)
    return [piece.decode() for piece, bits in zip(pieces, visible, strict=True) if not bits & bit]


@pytest.mark.parametrize(
    ("turns", "rows"),
    [
        ([CALL, answer("A")], [">A", "</"]),
        ([CALL, answer("Yes")], [">", "Yes", "</"]),
        ([CALL, answer("A.")], []),
        ([CALL, answer("(A)")], []),
        ([CALL, answer("A", gap="")], []),
        ([answer("A")], []),
        ([answer("B"), answer("A")], [">A", "</"]),
    ],
    ids=["letter", "word", "full stop", "brackets", "no newline", "no crop", "last answer only"],
)
def test_reference_answer_rows_with_their_gaps(turns: list[str], rows: list[str]) -> None:
    assert hidden(turns, 2) == rows


def test_reference_masks_calls_from_the_second_on() -> None:
    payload = ['>{"', "temp", "oral", "_segment", '":', " [", "1", ",", " ", "2", "],", ' "']
    payload += ["sampling", "_strategy", '":', ' "', "fine", '"', "}</", "ground"]
    assert hidden([CALL, answer("A")], 4) == []
    assert hidden([CALL, CALL, answer("A")], 4) == payload
    assert hidden([CALL, CALL, CALL, answer("A")], 4) == payload * 2
    assert hidden([CALL, SPACED, answer("A")], 4) == []


@pytest.mark.parametrize("rule", RULES)
def test_rows_of_the_prompt_have_one_mask_under_every_rule(rule: str) -> None:
    """Samples about one film may share the rows of their prompts, also where TDAM treats only some of the samples."""
    ids, roles, kinds, _ = document(CALL, CALL, answer("A"))
    tags = ReferenceTags.from_vocabulary(qwen_tokenizer().get_vocab())
    plain = token_masks(ids, roles, kinds, "off")
    treated = token_masks(ids, roles, kinds, rule, reference_tags=tags)
    assert (plain[1] != treated[1]).any() == (rule != "off")
    for without, under_rule in zip(plain, treated, strict=True):
        np.testing.assert_array_equal(under_rule[:4], without[:4])


def _reference_dense(ids: list[int], assistant: list[bool]) -> np.ndarray:
    """The public rule from its description, on plain lists, to compare on random ids."""
    size = len(ids)
    seen = np.tril(np.ones((size, size), dtype=bool))

    def pair(starts: list[int], ends: list[int]) -> list[tuple[int, int]]:
        pairs, first, second = [], 0, 0
        while first < len(starts) and second < len(ends):
            if starts[first] < ends[second]:
                pairs.append((starts[first], ends[second]))
                first += 1
            second += 1
        return pairs

    def find(tag: tuple[int, ...]) -> list[int]:
        text = [token if mine else -1 for token, mine in zip(ids, assistant, strict=True)]
        return [at for at in range(size) if tuple(text[at : at + len(tag)]) == tag]

    videos = pair([i for i, t in enumerate(ids) if t == 900], [i for i, t in enumerate(ids) if t == 901])
    if len(videos) < 2:
        return seen
    answers = pair(find(TAGS.answer_open), [at + 1 for at in find(TAGS.answer_close)])
    for start, end in answers[-1:]:
        seen[start + 2 : end, videos[0][0] + 1 : videos[0][1]] = False
    for start, end in pair(find(TAGS.call_open), [at + 2 for at in find(TAGS.call_close)])[1:]:
        for row in range(start + 3, end):
            for first, last in videos[1:]:
                seen[row, first + 1 : last] = False
    return seen


PHRASES = [[900, 5, 6, 901], [27, 9217], [522, 9217], [27, 1951, 287], [5361, 1951, 287], [7], [8, 9], [901], [27]]


@given(
    phrases=st.lists(st.tuples(st.sampled_from(PHRASES), st.booleans()), max_size=30),
)
def test_reference_equals_its_description_on_random_ids(phrases: list[tuple[list[int], bool]]) -> None:
    ids = [token for phrase, _ in phrases for token in phrase]
    assistant = [mine and phrase[0] != 900 for phrase, mine in phrases for _ in phrase]
    roles = [int(Role.TAG if mine else Role.OBSERVATION) for mine in assistant]
    key_class, visible = token_masks(ids, roles, [0] * len(ids), "reference", reference_tags=TAGS)
    np.testing.assert_array_equal(expand(key_class, visible), _reference_dense(ids, assistant))


def test_the_draw_takes_its_share_and_depends_on_id_and_seed_alone() -> None:
    names = [f"video-{index}" for index in range(20_000)]
    drawn = [selects(name, 7, 0.1) for name in names]
    assert abs(sum(drawn) / len(names) - 0.1) < 0.01
    assert drawn == [selects(name, 7, 0.1) for name in names]
    assert drawn != [selects(name, 8, 0.1) for name in names]
    assert all(selects(name, 7, 0.3) for name, taken in zip(names, drawn, strict=True) if taken)


def test_the_draw_at_its_ends() -> None:
    assert not any(selects(str(index), 0, 0.0) for index in range(1000))
    assert all(selects(str(index), 0, 1.0) for index in range(1000))
    assert selects("x\ud800", 0, 1.0)
    with pytest.raises(ValueError, match="share is 1.5"):
        selects("a", 0, 1.5)

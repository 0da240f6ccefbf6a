"""M-RoPE positions against transformers' own, against the older rule written anew, and against hand computation."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen2_5_VLModel

from videoseek.batches.positions import clip_positions, mrope_positions
from videoseek.config import POSITION_RULES
from videoseek.model.tiny import build_tokenizer, tiny_config
from videoseek.types import Clip

PAD = 7


def clip(num_frames: int, height: int, width: int, sample_fps: float = 2.0) -> Clip:
    times = tuple(i / sample_fps for i in range(num_frames))
    return Clip("v.mp4", 0.0, num_frames / sample_fps, times, height, width, sample_fps)


def sequence(*parts: int | Clip) -> tuple[list[int], list[Clip]]:
    """Token ids of so many text tokens and clips, in order."""
    ids: list[int] = []
    for part in parts:
        ids += [PAD] * part.num_tokens if isinstance(part, Clip) else [1] * part
    return ids, [part for part in parts if isinstance(part, Clip)]


def largest_of_three_axes(parts: tuple[int | Clip, ...], tokens_per_second: float) -> list[tuple[int, int, int]]:
    """The older rule, one token at a time: every stretch starts one past the largest number used so far."""
    out: list[tuple[int, int, int]] = []
    for part in parts:
        start = max((number for triple in out for number in triple), default=-1) + 1
        if isinstance(part, int):
            out += [(start + i,) * 3 for i in range(part)]
            continue
        grids, rows, columns = part.grid_thw
        for t in range(grids):
            second = torch.tensor(t) * (part.second_per_grid * tokens_per_second)
            for row in range(rows // 2):
                for column in range(columns // 2):
                    out.append((start + int(second), start + row, start + column))
    return out


LAYOUTS = {
    "one video": (3, clip(4, 56, 84), 5),
    "video first": (clip(8, 28, 28), 1),
    "video last": (2, clip(2, 140, 28)),
    "several clips": (4, clip(16, 28, 28, 0.5), 6, clip(2, 56, 56, 0.5), 1, clip(8, 84, 112, 4.0), 9),
    "odd sizes": (1, clip(6, 28 * 7, 28 * 3, 1.0), 2, clip(2, 28, 28 * 11, 30.0), 1),
    "fractions of a second": (2, clip(10, 56, 28, 2 / 0.37), 3, clip(12, 28, 56, 1.7), 4),
    "text alone": (11,),
}


@pytest.mark.parametrize("tokens_per_second", [2, 4, 25])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_rule_hf5_equals_transformers(layout: tuple[int | Clip, ...], tokens_per_second: int) -> None:
    config = tiny_config(build_tokenizer([]))
    config.vision_config.tokens_per_second = tokens_per_second
    with torch.device("meta"):
        model = Qwen2_5_VLModel(config)
    ids, clips = sequence(*layout)
    row = torch.tensor([ids])
    theirs, deltas = model.get_rope_index(
        row,
        mm_token_type_ids=torch.where(row == PAD, 2, 0).int(),
        video_grid_thw=torch.tensor([item.grid_thw for item in clips]),
        second_per_grid_ts=[item.second_per_grid for item in clips],
    )
    ours, following = mrope_positions(ids, clips, PAD, float(tokens_per_second), rule="hf5")
    assert torch.equal(ours, theirs[:, 0])
    if isinstance(layout[-1], int):
        assert following == int(ours.max(dim=0).values[-1]) + 1


@pytest.mark.parametrize("tokens_per_second", [2.0, 4.0, 25.0])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_rule_max_all_equals_the_older_rule(layout: tuple[int | Clip, ...], tokens_per_second: float) -> None:
    ids, clips = sequence(*layout)
    ours, following = mrope_positions(ids, clips, PAD, tokens_per_second)
    wanted = largest_of_three_axes(layout, tokens_per_second)
    assert ours.T.tolist() == [list(triple) for triple in wanted]
    assert following == max(number for triple in wanted for number in triple) + 1


def test_two_clips_equal_hand_computed_positions() -> None:
    """Two text tokens; 3 grids of 1 x 2 tokens, 4 s apart (8 positions); one token; 1 grid of 3 x 1; one token."""
    ids, clips = sequence(2, clip(6, 28, 56, 0.5), 1, clip(2, 84, 28), 1)
    ours, following = mrope_positions(ids, clips, PAD, 2.0)
    assert ours.tolist() == [
        [0, 1, 2, 2, 10, 10, 18, 18, 19, 20, 20, 20, 23],
        [0, 1, 2, 2, 2, 2, 2, 2, 19, 20, 21, 22, 23],
        [0, 1, 2, 3, 2, 3, 2, 3, 19, 20, 20, 20, 23],
    ]
    assert following == 24
    late, _ = mrope_positions(ids, clips, PAD, 2.0, rule="hf5")
    assert late[:, 8:].tolist() == [[4, 5, 5, 5, 8], [4, 5, 6, 7, 8], [4, 5, 5, 5, 8]]


def test_times_are_truncated_after_the_product() -> None:
    """0.7 s a grid at 2 positions a second: 0, 1.4, 2.8, 4.2; a truncated 0.7 would stand still."""
    times = clip_positions(clip(8, 28, 28, 2 / 0.7), 0, 2.0)[0]
    assert times.tolist() == [0, 1, 2, 4]


PARTS = st.lists(
    st.integers(1, 5)
    | st.builds(
        lambda n, h, w, fps: clip(2 * n, 28 * h, 28 * w, fps),
        *(st.integers(1, 4) for _ in range(3)),
        st.sampled_from([0.25, 0.5, 1.3, 2.0, 24.0]),
    ),
    min_size=1,
    max_size=7,
)


@settings(deadline=None)
@given(parts=PARTS, cut=st.integers(0, 7), rule=st.sampled_from(POSITION_RULES))
def test_pieces_continue_into_the_whole(parts: list[int | Clip], cut: int, rule: str) -> None:
    whole, end = mrope_positions(*sequence(*parts), PAD, 2.0, rule=rule)
    first, middle = mrope_positions(*sequence(*parts[:cut]), PAD, 2.0, rule=rule)
    second, last = mrope_positions(*sequence(*parts[cut:]), PAD, 2.0, start=middle, rule=rule)
    assert torch.equal(torch.cat([first, second], dim=1), whole)
    assert last == end


def test_an_empty_sequence_has_no_positions() -> None:
    positions, following = mrope_positions([], [], PAD, 2.0, start=5)
    assert positions.shape == (3, 0) and following == 5


@pytest.mark.parametrize(
    ("ids", "clips", "said"),
    [
        ([1, PAD], [], "index 1 has no clip"),
        ([PAD, PAD, 1], [clip(2, 28, 28)], "index 1 has no clip"),
        ([1, PAD, 1, PAD], [clip(2, 28, 56)], "clip of 2 tokens does not fit its pad tokens at index 1"),
        ([PAD], [clip(2, 28, 56)], "clip of 2 tokens does not fit its pad tokens at index 0"),
        ([1, PAD], [clip(2, 28, 28), clip(2, 28, 28)], "2 clips were given for fewer runs"),
        ([1], [clip(2, 28, 28)], "1 clips were given for fewer runs"),
    ],
    ids=["no clip", "too many pads", "pads cut in two", "too few pads", "a clip too many", "no pads"],
)
def test_pads_and_clips_must_match(ids: list[int], clips: list[Clip], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        mrope_positions(ids, clips, PAD, 2.0)


def test_unknown_rule_is_named() -> None:
    with pytest.raises(ValueError, match="'v6' is not one of max_all, hf5"):
        mrope_positions([1], [], PAD, 2.0, rule="v6")

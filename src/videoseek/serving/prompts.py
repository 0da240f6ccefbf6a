"""Prompts in the form that vLLM takes, with one pad token for each clip, and in the form that it gives back."""

from __future__ import annotations

from collections.abc import Sequence

from videoseek.types import Clip


def with_one_pad(ids: Sequence[int], clips: Sequence[Clip], pad: int) -> list[int]:
    """Returns ids with one pad token for each clip instead of the clip's run of them."""
    short_ids: list[int] = []
    index, remaining = 0, iter(clips)
    while index < len(ids):
        short_ids.append(ids[index])
        index += next(remaining).num_tokens if ids[index] == pad else 1
    return short_ids


def first_difference(theirs: Sequence[int], ours: Sequence[int]) -> str:
    """Returns a sentence about the first difference of two prompts."""
    pairs = enumerate(zip(theirs, ours, strict=False))
    where = next((index for index, (their, our) in pairs if their != our), min(len(theirs), len(ours)))
    return (
        f"vLLM expanded the prompt to {len(theirs)} tokens, the trainer to {len(ours)}; they differ from token {where} "
        f"({list(theirs[where : where + 4])} there, {list(ours[where : where + 4])} here). Do the preprocessor files "
        "of its model folder belong to the model?"
    )

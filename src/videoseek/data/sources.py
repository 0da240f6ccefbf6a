"""From the names in a recipe to samples: JSONL files, or the generated clue world."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from videoseek.data.clueworld import prepare
from videoseek.data.schema import DataError, read_samples
from videoseek.types import Sample

#: Generated sources -> the splits that training and held-out data come from.
GENERATED = {"clueworld": ("train", "heldout"), "clueworld_base": ("base", "base_heldout")}


def load_samples(
    sources: Sequence[str],
    *,
    held_out: bool,
    num_generated: int,
    seed: int,
    video_root: str | None,
    cache_dir: str,
    on_video: Callable[[int, int], None] | None = None,
) -> list[Sample]:
    """Samples of all sources in order. A name of `GENERATED` stands for `num_generated` samples of its split.

    Raises DataError when a file is missing or malformed, or when two sources use one id.
    """
    samples: list[Sample] = []
    for source in sources:
        if source in GENERATED:
            split = GENERATED[source][held_out]
            path = prepare(Path(os.path.expanduser(cache_dir)), split, num_generated, seed, on_video)
            samples += read_samples(path)
        else:
            samples += read_samples(Path(source), Path(video_root) if video_root else None)
    seen: set[str] = set()
    for sample in samples:
        if sample.id in seen:
            raise DataError(f"id {sample.id!r} is used in two of {', '.join(sources)}")
        seen.add(sample.id)
    return samples

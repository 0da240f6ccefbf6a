"""Loads the samples of a run: reads or generates samples, and checks all samples before any training."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from videoseek.config import TrainConfig
from videoseek.distributed import barrier, gather, rank_indices
from videoseek.files import write_text
from videoseek.runtime import Progress, rank
from videoseek.samples.readers.rows import Problem, VideoPaths, problem_lines
from videoseek.samples.rules import Rules, find_bad, refusal
from videoseek.samples.sources import Loading, Mixture, load_samples
from videoseek.trajectory.run_format import run_format
from videoseek.types import Sample


@dataclass(slots=True)
class Data:
    """The samples of a run. Generated held-out samples share no video with the others.

    `bad` holds the records dropped by data.bad_samples=skip (place and reason), by source key.
    """

    sft: Sequence[Sample] = ()
    rl: Sequence[Sample] = ()
    held_out: list[Sample] = field(default_factory=list)
    bad: dict[str, list[tuple[str, Problem]]] = field(default_factory=dict)

    def write_bad(self, output_dir: Path) -> None:
        """Writes the dropped records to `skipped.jsonl`, if there are any."""
        lines = [
            json.dumps({"data": name, "where": where, "code": problem.code, "message": problem.message})
            for name, records in self.bad.items()
            for where, problem in records
        ]
        if lines:
            write_text(output_dir / "skipped.jsonl", "\n".join(lines) + "\n")


def load_data(config: TrainConfig) -> Data:
    """Returns the samples of all stages. Raises DataError for the first bad sample, unless data.bad_samples=skip."""
    splits: dict[str, Mixture] = {}
    if {"direct", "sft"} & set(config.stages):
        splits["sft"] = load_split(config, "sft")
    if "grpo" in config.stages:
        splits["rl"] = load_split(config, "rl")
    splits["eval"] = load_split(config, "eval")
    bad = {name: list(split.bad()) for name, split in splits.items()}
    held_out = splits["eval"][: config.evaluate.num_questions]
    return Data(sft=splits.get("sft", ()), rl=splits.get("rl", ()), held_out=held_out, bad=bad)


def load_split(config: TrainConfig, name: str) -> Mixture:
    """Returns the samples of `data.NAME`, for NAME in sft, rl, eval. Raises DataError.

    Rank 0 generates videos before the other ranks look for them.
    """
    data = config.data
    skip_bad = data.bad_samples == "skip"
    loading = Loading(
        seed=config.seed,
        held_out=name == "eval",
        paths=VideoPaths.of(data.video_root, data.video_prefixes),
        call_format=config.prompt.format if name == "sft" else None,
        skip_bad=skip_bad,
    )
    sources = {"sft": data.sft, "rl": data.rl, "eval": data.eval}[name]
    fmt = run_format(config)
    rules = Rules(fmt, config.rollout.max_turns, config.video.min_window_seconds)
    with Progress(f"data for {name}", 1) as progress:
        loaded = load_samples(sources, loading, progress.track) if rank() == 0 else None
    barrier()
    samples = loaded if loaded is not None else load_samples(sources, loading)
    once = samples.distinct()
    with Progress(f"check {name}", len(once)) as progress:
        # Each rank opens the videos of its share. Every rank gets the findings of all: all ranks stop together.
        bad_samples = find_bad(
            once,
            rank_indices(len(once)),
            need_turns=name == "sft",
            need_reward=name == "rl",
            rules=rules,
            first_only=not skip_bad,
            on_progress=progress.track,
        )
        bad_samples = gather(bad_samples)
    if bad_samples and not skip_bad:
        raise refusal(bad_samples)
    if bad_samples:
        problems = {bad.id: bad.problem for bad in bad_samples}
        samples.drop(lambda sample: problems.get(sample.id))
    if rank() == 0 and (bad := list(samples.bad())):
        head = f"  data.{name}: {len(bad)} records passed over (data.bad_samples=skip); skipped.jsonl names each"
        print("\n".join([head, *problem_lines(bad)]), file=sys.stderr, flush=True)
    return samples

"""The samples of a run: read or generated, checked before any training, and what was passed over by name."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from videoseek.config import TrainConfig
from videoseek.distributed import barrier, gather, rank_indices
from videoseek.files import write_text
from videoseek.progress import Progress
from videoseek.ranks import rank
from videoseek.samples.check import Rules, find_bad, refusal
from videoseek.samples.readers.rows import Problem, VideoPaths, problem_lines
from videoseek.samples.sources import Loading, Mixture, load_samples
from videoseek.trajectory.grammar import FORMATS
from videoseek.types import Sample


@dataclass(slots=True)
class Data:
    """Samples of a run; the held-out ones share no video with the others when they are generated.

    `bad` are the records that data.bad_samples=skip passed over, where and why, by the key of their sources.
    """

    sft: Sequence[Sample] = ()
    rl: Sequence[Sample] = ()
    held_out: list[Sample] = field(default_factory=list)
    bad: dict[str, list[tuple[str, Problem]]] = field(default_factory=dict)

    def write_bad(self, output_dir: Path) -> None:
        """Every record that was passed over, in `skipped.jsonl`, if there is one."""
        lines = [
            json.dumps({"data": name, "where": where, "code": problem.code, "message": problem.message})
            for name, found in self.bad.items()
            for where, problem in found
        ]
        if lines:
            write_text(output_dir / "skipped.jsonl", "\n".join(lines) + "\n")


def load_data(config: TrainConfig) -> Data:
    """The samples of all stages. Raises DataError for the first bad one, unless data.bad_samples=skip."""
    parts: dict[str, Mixture] = {}
    if {"direct", "sft"} & set(config.stages):
        parts["sft"] = load_split(config, "sft")
    if "grpo" in config.stages:
        parts["rl"] = load_split(config, "rl")
    parts["eval"] = load_split(config, "eval")
    bad = {name: list(part.bad()) for name, part in parts.items()}
    held_out = parts["eval"][: config.evaluate.num_questions]
    return Data(sft=parts.get("sft", ()), rl=parts.get("rl", ()), held_out=held_out, bad=bad)


def load_split(config: TrainConfig, name: str) -> Mixture:
    """The samples of `data.NAME`. Rank 0 generates what has to be generated; the others find it made."""
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
    fmt = FORMATS[config.prompt.format](config.prompt.style)
    rules = Rules(fmt, config.rollout.max_turns, config.video.min_window_seconds)
    with Progress(f"data for {name}", 1) as progress:
        first = load_samples(sources, loading, progress.track) if rank() == 0 else None
    barrier()
    samples = first if first is not None else load_samples(sources, loading)
    once = samples.distinct()
    with Progress(f"check {name}", len(once)) as progress:
        # Each rank opens the videos of its share; all hear of what any found, so that all go on, or stop, together.
        found = find_bad(
            once,
            rank_indices(len(once)),
            need_turns=name == "sft",
            rules=rules,
            first_only=not skip_bad,
            on_progress=progress.track,
        )
        found = gather(found)
    if found and not skip_bad:
        raise refusal(found)
    if found:
        problems = {bad.id: bad.problem for bad in found}
        samples.drop(lambda sample: problems.get(sample.id))
    if rank() == 0 and (bad := list(samples.bad())):
        head = f"  data.{name}: {len(bad)} records passed over (data.bad_samples=skip); skipped.jsonl names each"
        print("\n".join([head, *problem_lines(bad)]), file=sys.stderr, flush=True)
    return samples

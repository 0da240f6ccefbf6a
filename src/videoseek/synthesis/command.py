"""`python -m videoseek.data synthesize`: synthesises tool trajectories from raw videos."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from videoseek.command import parse_files
from videoseek.config import UsageError
from videoseek.files import prepare_output_dir
from videoseek.runtime import Progress
from videoseek.samples.schema import DataError
from videoseek.synthesis.inputs import read_items
from videoseek.synthesis.items import Item, in_shard
from videoseek.synthesis.outputs import REJECTED, SAMPLES, read_shards, write_outputs
from videoseek.synthesis.settings import SynthesisSettings, check_settings

USAGE = "python -m videoseek.data synthesize VIDEO_FOLDER|LINES.jsonl model=NAME [key=value ...]"


def main(arguments: list[str]) -> None:
    paths, settings = parse_files(arguments, SynthesisSettings(), USAGE)
    check_settings(settings)
    # torch and PyAV take seconds to import; --help and the errors above come before the imports.
    from videoseek.synthesis.estimate import estimate, estimate_text
    from videoseek.synthesis.executor import execute
    from videoseek.synthesis.review import write_review
    from videoseek.video.worker import use_worker

    if settings.merge:
        items, settings = _merged_shards(paths, settings)
    else:
        items = _input_items(paths, settings)
        use_worker(settings.video.stall_seconds, len(os.sched_getaffinity(0)))
        if settings.dry_run:
            with Progress("estimate", len(items)) as progress:
                print(estimate_text(estimate(items, settings, progress.track), settings))
            return
        _require_extras()
        prepare_output_dir(settings.folder)
        items = execute(items, settings)
    summary = write_outputs(items, settings)
    write_review(items, settings)
    print(summary_text(summary))
    _check_result(summary, items, settings)
    if summary["samples"]:
        samples = settings.folder / SAMPLES
        print(f"train with: python -m videoseek.train recipe=sft data.sft=[{samples}]{_video_root(items, samples)}")


def _merged_shards(paths: Sequence[str], settings: SynthesisSettings) -> tuple[list[Item], SynthesisSettings]:
    if paths or settings.content() != SynthesisSettings().content():
        raise UsageError("merge=true takes everything from the shards in OUT; give it out and review alone")
    return read_shards(settings)


def _input_items(paths: Sequence[str], settings: SynthesisSettings) -> list[Item]:
    if len(paths) != 1:
        raise UsageError(f"name one folder of videos or one JSONL file, got {len(paths)}; usage: {USAGE}")
    video_root = Path(settings.video_root) if settings.video_root is not None else None
    return in_shard(read_items(Path(paths[0]), video_root)[: settings.limit], *settings.part)


def _require_extras() -> None:
    missing = [name for name in ("openai", "jsonschema") if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"synthesis needs {' and '.join(missing)}: pip install 'videoseek[data]'")


def _check_result(summary: dict[str, Any], items: Sequence[Item], settings: SynthesisSettings) -> None:
    """Raises DataError if items are unfinished or if no item was accepted."""
    if summary["unfinished"]:
        first_reason = next(item.rejection.reason for item in items if item.rejection and item.is_unfinished)
        raise DataError(
            f"{summary['unfinished']} of {summary['items']} items went unanswered; the same command goes on with them; "
            f"the first: {first_reason}"
        )
    if items and not summary["samples"]:
        raise DataError(f"no item passed every stage; {settings.folder / REJECTED} says why")


def _video_root(items: Sequence[Item], samples: Path) -> str:
    """Returns training's key for videos outside the folder of the samples, or an empty string."""
    videos = [Path(item.video).resolve() for item in items]
    if all(video.is_relative_to(samples.parent.resolve()) for video in videos):
        return ""
    return f" data.video_root={os.path.commonpath([video.parent for video in videos])}"


def summary_text(summary: dict[str, Any]) -> str:
    """Returns the summary as a table for the terminal."""
    lines = [f"{'stage':<10}  {'items':>7}  {'passed':>7}  {'yield':>6}  {'calls':>7}  {'repairs':>7}  {'cost':>9}"]
    for name, row in summary["stages"].items():
        stage_yield = "-" if row["yield"] is None else f"{row['yield']:.0%}"
        lines.append(
            f"{name:<10}  {row['items']:>7}  {row['passed']:>7}  {stage_yield:>6}  {row['calls']:>7}  "
            f"{row['repairs']:>7}  {row['cost']:>9.4f}"
        )
    kinds = ", ".join(f"{count['samples']} {kind}" for kind, count in summary["kinds"].items() if count["samples"])
    surplus = f", {summary['surplus']} more in surplus.jsonl" if summary["surplus"] else ""
    lines.append(f"{summary['samples']} samples of {summary['items']} items{surplus}" + (f": {kinds}" if kinds else ""))
    return "\n".join(lines)

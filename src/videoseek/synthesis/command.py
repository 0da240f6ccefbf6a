"""`python -m videoseek.data synthesize`: raw videos in, tool trajectories out."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from videoseek.command import parse_files
from videoseek.config import UsageError
from videoseek.files import prepare_output_dir
from videoseek.progress import Progress
from videoseek.samples.schema import DataError
from videoseek.synthesis.estimate import estimate, estimate_text
from videoseek.synthesis.executor import drive
from videoseek.synthesis.inputs import read_items
from videoseek.synthesis.items import UNFINISHED, Item, in_shard
from videoseek.synthesis.outputs import SAMPLES, publish, read_shards
from videoseek.synthesis.review import write_review
from videoseek.synthesis.settings import SynthesisSettings, check_settings
from videoseek.video.worker import use_worker

USAGE = "python -m videoseek.data synthesize VIDEO_FOLDER|LINES.jsonl model=NAME [key=value ...]"


def main(arguments: list[str]) -> None:
    paths, settings = parse_files(arguments, SynthesisSettings(), USAGE)
    check_settings(settings)
    if settings.merge:
        _merge(paths, settings)
        return
    if len(paths) != 1:
        raise UsageError(f"name one folder of videos or one JSONL file, got {len(paths)}; usage: {USAGE}")
    root = Path(settings.video_root) if settings.video_root is not None else None
    items = in_shard(read_items(Path(paths[0]), root)[: settings.limit], *settings.part)
    use_worker(settings.video.stall_seconds, len(os.sched_getaffinity(0)))
    if settings.dry_run:
        with Progress("estimate", len(items)) as progress:
            print(estimate_text(estimate(items, settings, progress.track), settings))
        return
    _require_extras()
    prepare_output_dir(settings.folder)
    _finish(drive(items, settings), settings)


def _require_extras() -> None:
    missing = [name for name in ("openai", "jsonschema") if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"synthesis needs {' and '.join(missing)}: pip install 'videoseek[data]'")


def _merge(paths: Sequence[str], settings: SynthesisSettings) -> None:
    if paths or settings.content() != SynthesisSettings().content():
        raise UsageError("merge=true takes everything from the shards in OUT; give it out and review alone")
    items, shaped = read_shards(settings)
    _finish(items, shaped)


def _finish(items: Sequence[Item], settings: SynthesisSettings) -> None:
    """Writes everything and says what came out. Raises DataError when items are unfinished or nothing passed."""
    summary = publish(items, settings)
    write_review(items, settings)
    print(summary_text(summary))
    samples = settings.folder / SAMPLES
    if summary["unfinished"]:
        first = next(item.ending.reason for item in items if item.ending is not None and item.ending.code == UNFINISHED)
        raise DataError(
            f"{summary['unfinished']} of {summary['items']} items went unanswered; the same command goes on with them; "
            f"the first: {first}"
        )
    if items and not summary["samples"]:
        raise DataError(f"no item passed every stage; {settings.folder / 'rejected.jsonl'} says why")
    if summary["samples"]:
        print(f"train with: python -m videoseek.train recipe=sft data.sft=[{samples}]{_video_root(items, samples)}")


def _video_root(items: Sequence[Item], samples: Path) -> str:
    """The key that lets training reach videos outside the folder of the samples."""
    videos = [Path(item.video).resolve() for item in items]
    if all(video.is_relative_to(samples.parent.resolve()) for video in videos):
        return ""
    return f" data.video_root={os.path.commonpath([video.parent for video in videos])}"


def summary_text(summary: dict[str, Any]) -> str:
    lines = [f"{'stage':<10}  {'items':>7}  {'passed':>7}  {'yield':>6}  {'calls':>7}  {'repairs':>7}  {'cost':>9}"]
    for name, row in summary["stages"].items():
        share = "-" if row["yield"] is None else f"{row['yield']:.0%}"
        lines.append(
            f"{name:<10}  {row['items']:>7}  {row['passed']:>7}  {share:>6}  {row['calls']:>7}  {row['repairs']:>7}  "
            f"{row['cost']:>9.4f}"
        )
    kinds = ", ".join(f"{count['samples']} {kind}" for kind, count in summary["kinds"].items() if count["samples"])
    surplus = f", {summary['surplus']} more in surplus.jsonl" if summary["surplus"] else ""
    lines.append(f"{summary['samples']} samples of {summary['items']} items{surplus}" + (f": {kinds}" if kinds else ""))
    return "\n".join(lines)

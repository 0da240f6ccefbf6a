"""What is written: samples, rejections with their reasons, yield and cost of each stage. All of it follows from the
items, so the joined shards give the same bytes as one run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from videoseek.config import UsageError
from videoseek.files import whole_file, write_json
from videoseek.samples.schema import DataError, write_samples
from videoseek.synthesis.balance import balanced
from videoseek.synthesis.items import UNFINISHED, Item, Usage
from videoseek.synthesis.prompts import prompt_version
from videoseek.synthesis.settings import QUADRANTS, SynthesisSettings, shard_name
from videoseek.synthesis.stages import STAGES

ITEMS, SAMPLES, SURPLUS, REJECTED, SUMMARY = (
    "items.jsonl",
    "samples.jsonl",
    "surplus.jsonl",
    "rejected.jsonl",
    "summary.json",
)
_ORDER = {name: index for index, name in enumerate(STAGES)}


def publish(items: Sequence[Item], settings: SynthesisSettings) -> dict[str, Any]:
    """Writes all files of a run into `settings.folder`, each whole or not at all, the summary last; returns it."""
    folder = settings.folder
    folder.mkdir(parents=True, exist_ok=True)
    accepted = [item for item in items if item.ending is None]
    kept = balanced({item.id: item.kind for item in accepted}, settings.shares, settings.seed)
    _write_lines(folder / ITEMS, (item.to_json() for item in items))
    write_samples(folder / SAMPLES, (item.sample() for item in accepted if item.id in kept))
    write_samples(folder / SURPLUS, (item.sample() for item in accepted if item.id not in kept))
    _write_lines(folder / REJECTED, (_rejection(item) for item in items if item.ending is not None))
    summary = _summary(items, accepted, kept, settings)
    write_json(folder / SUMMARY, summary)
    return summary


def _rejection(item: Item) -> str:
    """An unfinished item is in the log too: its code says that it is no verdict."""
    question = item.question.text if item.question is not None else None
    record = {"id": item.id, "source": item.source, "video": item.video, "question": question}
    return json.dumps(record | (asdict(item.ending) if item.ending else {}), ensure_ascii=False)


def _summary(
    items: Sequence[Item], accepted: Sequence[Item], kept: set[str], settings: SynthesisSettings
) -> dict[str, Any]:
    stages = {name: _stage_summary(name, items, settings) for name in STAGES}
    codes = Counter(f"{item.ending.stage}/{item.ending.code}" for item in items if item.ending is not None)
    return {
        "prompt_version": prompt_version(),
        "sources": len({item.source for item in items}),
        "items": len(items),
        "accepted": len(accepted),
        "samples": len(kept),
        "surplus": len(accepted) - len(kept),
        "unfinished": sum(item.ending is not None and item.ending.code == UNFINISHED for item in items),
        "cost": round(sum(stage["cost"] for stage in stages.values()), 6),
        "kinds": {
            kind: {
                "accepted": sum(item.kind == kind for item in accepted),
                "samples": sum(item.kind == kind and item.id in kept for item in accepted),
            }
            for kind in QUADRANTS
        },
        "rejections": dict(sorted(codes.items())),
        "stages": stages,
        "settings": settings.content(),
    }


def _stage_summary(name: str, items: Sequence[Item], settings: SynthesisSettings) -> dict[str, Any]:
    """Of those that came out of the stage, how many go on; captions are made once for all questions of a video."""
    reached = [item for item in items if _end(item) >= _ORDER[name]]
    units = {item.source if name == "caption" else item.id: item for item in reached}.values()
    passed = sum(_end(item) > _ORDER[name] for item in units)
    unfinished = sum(_end(item) == _ORDER[name] and _is_unfinished(item) for item in units)
    usage = sum((item.usage.get(name, Usage()) for item in items), Usage())
    cost = usage.prompt_tokens * settings.prompt_price + usage.completion_tokens * settings.completion_price
    counts = {"items": len(units), "passed": passed, "rejected": len(units) - passed - unfinished}
    counts["unfinished"] = unfinished
    return counts | {
        "yield": round(passed / len(units), 4) if units else None,
        **asdict(usage),
        "cost": round(cost / 1e6, 6),
    }


def _end(item: Item) -> int:
    """Index of the stage that an item ended at, beyond the last for an accepted one."""
    return len(_ORDER) if item.ending is None else _ORDER[item.ending.stage]


def _is_unfinished(item: Item) -> bool:
    return item.ending is not None and item.ending.code == UNFINISHED


def read_shards(settings: SynthesisSettings) -> tuple[list[Item], SynthesisSettings]:
    """The items of all shards in OUT, and `settings` with the keys that shaped them in place of its own.

    Raises UsageError when there is none, one is missing or unfinished, or two were made with other settings or prompts.
    """
    folder = Path(settings.out)
    found = sorted(path.name for path in folder.glob("shard-*-of-*"))
    counts = {name.rpartition("-")[2] for name in found}
    if len(counts) != 1 or not min(counts).isdigit():
        raise UsageError(f"{folder} must hold the shards of one run, found {', '.join(found) or 'none'}")
    count = int(counts.pop())
    items: list[Item] = []
    first: dict[str, Any] | None = None
    for index in range(1, count + 1):
        part = folder / shard_name(index, count)
        if not (part / SUMMARY).is_file():
            raise UsageError(f"{part} is missing or not finished; run shard={index}/{count} first")
        summary = json.loads((part / SUMMARY).read_text(encoding="utf-8"))
        if summary["unfinished"]:
            raise UsageError(f"{part} holds {summary['unfinished']} unfinished items; run shard={index}/{count} again")
        first = first or summary
        if any(summary[name] != first[name] for name in ("prompt_version", "settings")):
            raise UsageError(f"{part} was made with other settings than shard 1: {_differing(first, summary)}")
        items += _read_items(part / ITEMS)
    shaped = (first or {})["settings"]
    shaped = shaped | {"video": replace(settings.video, **shaped["video"])}
    return sorted(items, key=lambda item: item.id), replace(settings, **shaped)


def _differing(first: dict[str, Any], other: dict[str, Any]) -> str:
    here, there = other["settings"], first["settings"]
    names = [name for name in here if here[name] != there.get(name)]
    return ", ".join(f"{name} {here[name]!r} instead of {there.get(name)!r}" for name in names) or "other prompts"


def _read_items(path: Path) -> list[Item]:
    try:
        with path.open(encoding="utf-8", newline="\n") as lines:
            return [Item.from_json(line) for line in lines]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} does not hold the items of a run: {error}") from error


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    with whole_file(path) as partial, partial.open("w", encoding="utf-8") as out:
        out.writelines(line + "\n" for line in lines)

"""Writes the output files: samples, rejections with reasons, yield and cost of each stage.

All files are functions of the items, so merged shards give the same bytes as a single run.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from videoseek.config import UsageError
from videoseek.files import whole_file, write_json
from videoseek.samples.schema import DataError, write_samples
from videoseek.synthesis.items import STAGES, Item, Usage, hash_number
from videoseek.synthesis.prompts import prompt_version
from videoseek.synthesis.settings import QUADRANTS, SynthesisSettings, shard_name

ITEMS, SAMPLES, SURPLUS, REJECTED, SUMMARY = (
    "items.jsonl",
    "samples.jsonl",
    "surplus.jsonl",
    "rejected.jsonl",
    "summary.json",
)
_STAGE_INDEX = {name: index for index, name in enumerate(STAGES)}
#: Added before rounding down, so a share of 0.3 of 10 items is 3 items.
_ROUNDING = 1e-9


def write_outputs(items: Sequence[Item], settings: SynthesisSettings) -> dict[str, Any]:
    """Writes all files of a run into `settings.folder`, each atomically and the summary last. Returns the summary."""
    folder = settings.folder
    folder.mkdir(parents=True, exist_ok=True)
    accepted = [item for item in items if item.rejection is None]
    kept_ids = balanced_ids({item.id: item.kind for item in accepted}, settings.shares, settings.seed)
    _write_lines(folder / ITEMS, (item.to_json() for item in items))
    write_samples(folder / SAMPLES, (item.sample() for item in accepted if item.id in kept_ids))
    write_samples(folder / SURPLUS, (item.sample() for item in accepted if item.id not in kept_ids))
    _write_lines(folder / REJECTED, (_rejection_line(item) for item in items if item.rejection is not None))
    summary = _summary(items, accepted, kept_ids, settings)
    write_json(folder / SUMMARY, summary)
    return summary


def balanced_ids(kind_of: Mapping[str, str], shares: Sequence[float], seed: int) -> set[str]:
    """Returns the ids of `kind_of` (id -> quadrant) to keep: as many as `shares` allow, or all for empty `shares`.

    Targets of quadrants without any item are ignored. The scarcest remaining quadrant limits the total. The selection
    within a quadrant depends on the seed and on each id alone, regardless of the order of the items.
    """
    if not shares:
        return set(kind_of)
    counts = Counter(kind_of.values())
    targets = {kind: share for kind, share in zip(QUADRANTS, shares, strict=True) if share > 0 and counts[kind]}
    total = min((counts[kind] / share for kind, share in targets.items()), default=0.0)
    kept_ids: set[str] = set()
    for kind, share in targets.items():
        ids = [id_ for id_, item_kind in kind_of.items() if item_kind == kind]
        ids.sort(key=lambda id_: hash_number(seed, "balance", id_))
        kept_ids.update(ids[: int(total * share + _ROUNDING)])
    return kept_ids


def _rejection_line(item: Item) -> str:
    """Returns the line of an item in the file of rejections. Unfinished items have the code `unfinished`."""
    question = item.question.text if item.question is not None else None
    record = {"id": item.id, "source": item.source, "video": item.video, "question": question}
    return json.dumps(record | (asdict(item.rejection) if item.rejection else {}), ensure_ascii=False)


def _summary(
    items: Sequence[Item], accepted: Sequence[Item], kept_ids: set[str], settings: SynthesisSettings
) -> dict[str, Any]:
    stages = {name: _stage_summary(name, items, settings) for name in STAGES}
    codes = Counter(f"{item.rejection.stage}/{item.rejection.code}" for item in items if item.rejection is not None)
    return {
        "prompt_version": prompt_version(),
        "sources": len({item.source for item in items}),
        "items": len(items),
        "accepted": len(accepted),
        "samples": len(kept_ids),
        "surplus": len(accepted) - len(kept_ids),
        "unfinished": sum(item.is_unfinished for item in items),
        "cost": round(sum(stage["cost"] for stage in stages.values()), 6),
        "kinds": {
            kind: {
                "accepted": sum(item.kind == kind for item in accepted),
                "samples": sum(item.kind == kind and item.id in kept_ids for item in accepted),
            }
            for kind in QUADRANTS
        },
        "rejections": dict(sorted(codes.items())),
        "stages": stages,
        "settings": settings.content(),
    }


def _stage_summary(name: str, items: Sequence[Item], settings: SynthesisSettings) -> dict[str, Any]:
    """Counts the items that reached a stage and the items that passed the stage, and adds up the usage.

    The captions of a video serve all questions about the video, so the stage `caption` counts sources instead of items.
    """
    reached = [item for item in items if _last_stage_index(item) >= _STAGE_INDEX[name]]
    units = {item.source if name == "caption" else item.id: item for item in reached}.values()
    num_passed = sum(_last_stage_index(item) > _STAGE_INDEX[name] for item in units)
    num_unfinished = sum(_last_stage_index(item) == _STAGE_INDEX[name] and item.is_unfinished for item in units)
    usage = sum((item.usage.get(name, Usage()) for item in items), Usage())
    return {
        "items": len(units),
        "passed": num_passed,
        "rejected": len(units) - num_passed - num_unfinished,
        "unfinished": num_unfinished,
        "yield": round(num_passed / len(units), 4) if units else None,
        **asdict(usage),
        "cost": round(settings.cost(usage), 6),
    }


def _last_stage_index(item: Item) -> int:
    """Returns the index of the stage that rejected the item, or the number of stages for an accepted item."""
    return len(STAGES) if item.rejection is None else _STAGE_INDEX[item.rejection.stage]


def read_shards(settings: SynthesisSettings) -> tuple[list[Item], SynthesisSettings]:
    """Returns the items of all shards in OUT, sorted by id, and `settings` with the shards' content settings.

    Raises UsageError if a shard is missing or unfinished, or if the settings or the prompts of two shards differ.
    """
    folder = Path(settings.out)
    names = sorted(path.name for path in folder.glob("shard-*-of-*"))
    counts = {name.rpartition("-")[2] for name in names}
    if len(counts) != 1 or not min(counts).isdigit():
        raise UsageError(f"{folder} must hold the shards of one run, found {', '.join(names) or 'none'}")
    count = int(counts.pop())
    items: list[Item] = []
    first_summary: dict[str, Any] | None = None
    for index in range(1, count + 1):
        shard = folder / shard_name(index, count)
        if not (shard / SUMMARY).is_file():
            raise UsageError(f"{shard} is missing or not finished; run shard={index}/{count} first")
        summary = json.loads((shard / SUMMARY).read_text(encoding="utf-8"))
        if summary["unfinished"]:
            raise UsageError(f"{shard} holds {summary['unfinished']} unfinished items; run shard={index}/{count} again")
        first_summary = first_summary or summary
        if any(summary[name] != first_summary[name] for name in ("prompt_version", "settings")):
            raise UsageError(
                f"{shard} was made with other settings than shard 1: {_differences(first_summary, summary)}"
            )
        items += _read_item_lines(shard / ITEMS)
    content = (first_summary or {})["settings"]
    content = content | {"video": replace(settings.video, **content["video"])}
    return sorted(items, key=lambda item: item.id), replace(settings, **content)


def _differences(first_summary: dict[str, Any], summary: dict[str, Any]) -> str:
    ours, first = summary["settings"], first_summary["settings"]
    names = [name for name in ours if ours[name] != first.get(name)]
    return ", ".join(f"{name} {ours[name]!r} instead of {first.get(name)!r}" for name in names) or "other prompts"


def _read_item_lines(path: Path) -> list[Item]:
    try:
        with path.open(encoding="utf-8", newline="\n") as lines:
            return [Item.from_json(line) for line in lines]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} does not hold the items of a run: {error}") from error


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    with whole_file(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.writelines(line + "\n" for line in lines)

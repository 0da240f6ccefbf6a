"""Runs all items through all stages, in the own process or on a Ray cluster. Both return equal items in equal order."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from math import ceil
from typing import Any

from videoseek.config import UsageError
from videoseek.endpoint import CallFailed, Client, EndpointError, read_key
from videoseek.runtime import Progress
from videoseek.synthesis.client import ItemRejected, StageClient
from videoseek.synthesis.items import STAGES, UNFINISHED, Item, Rejection
from videoseek.synthesis.settings import SynthesisSettings
from videoseek.synthesis.stages import STAGE_FUNCTIONS
from videoseek.video.errors import VideoError
from videoseek.video.worker import use_worker

#: A Ray task spends most of its time waiting for replies.
_CPUS_PER_TASK = 0.5


def execute(items: Sequence[Item], settings: SynthesisSettings) -> list[Item]:
    """Returns the items with trajectories or rejections, sorted by id. Raises EndpointError or UsageError."""
    results = _EXECUTORS[settings.driver](items, settings)
    return sorted(results, key=lambda item: item.id)


def _execute_locally(items: Sequence[Item], settings: SynthesisSettings) -> list[Item]:
    return asyncio.run(_run_stages(items, settings))


async def _run_stages(items: Sequence[Item], settings: SynthesisSettings) -> list[Item]:
    """Finishes a stage before the next stage starts, so progress shows the yield and the time left of each stage."""
    active, rejected = list(items), []
    async with Client(settings, settings.cache_folder) as client:
        for stage in STAGES:
            with Progress(stage, len(active)) as progress:
                results = await _run_stage(stage, active, client, progress.update)
            active = [item for item in results if item.rejection is None]
            rejected += [item for item in results if item.rejection is not None]
    return active + rejected


async def _run_stage(
    stage: str,
    items: Sequence[Item],
    client: Client[SynthesisSettings],
    on_item: Callable[[int, Mapping[str, float]], None],
) -> list[Item]:
    """Returns the stage's results in the order of the items, whatever the concurrency.

    After each item, calls `on_item` with the number of finished items and further counts. Raises EndpointError.
    """
    results: list[list[Item]] = [[] for _ in items]
    queue = iter(enumerate(items))
    num_done = num_rejected = 0

    async def work() -> None:
        nonlocal num_done, num_rejected
        for index, item in queue:
            results[index] = await _run_item(stage, item, client)
            num_done += 1
            num_rejected += sum(result.rejection is not None for result in results[index])
            counts = {"rejected": num_rejected, "requests": client.num_requests, "cached": client.num_cached}
            on_item(num_done, counts)

    await asyncio.gather(*(work() for _ in range(min(client.settings.concurrency, len(items)))))
    return [result for item_results in results for result in item_results]


async def _run_item(stage: str, item: Item, client: Client[SynthesisSettings]) -> list[Item]:
    """Runs an item through a stage. The first result carries the usage. An error becomes the item's rejection."""
    stage_client = StageClient(client)
    try:
        first, *others = await STAGE_FUNCTIONS[stage](item, stage_client)
    except ItemRejected as error:
        first, others = _rejected(item, stage, error.code, error.reason), []
    except VideoError as error:
        first, others = _rejected(item, stage, error.code, error.message), []
    except CallFailed as error:
        first, others = _rejected(item, stage, UNFINISHED, str(error)), []
    if stage_client.usage.calls:
        first = replace(first, usage=first.usage | {stage: stage_client.usage})
    return [first, *(replace(other, usage={}) for other in others)]


def _rejected(item: Item, stage: str, code: str, reason: str) -> Item:
    return replace(item, rejection=Rejection(stage, code, reason))


def _execute_on_ray(items: Sequence[Item], settings: SynthesisSettings) -> list[Item]:
    """Runs batches of `concurrency` items as Ray Data tasks, as many at once as the cluster can hold.

    All machines must share the disks of the cache folder and of the videos, and must have the key's variable set.
    """
    try:
        ray: Any = importlib.import_module("ray")
        importlib.import_module("ray.data")
    except ImportError as error:
        raise UsageError("driver=ray needs Ray Data: pip install 'videoseek[data,ray]'") from error
    read_key(settings.api_key_env)  # reports a missing key once, before every task reports the same error
    num_batches = max(ceil(len(items) / settings.concurrency), 1)
    rows = [{"item": item.to_json(), "failure": ""} for item in items]
    dataset = ray.data.from_items(rows, override_num_blocks=num_batches)
    for stage in STAGES:
        dataset = dataset.map_batches(
            _run_batch,
            fn_kwargs={"stage": stage, "settings": settings},
            batch_size=settings.concurrency,
            num_cpus=_CPUS_PER_TASK,
        )
    results = []
    for row in dataset.iter_rows():
        if row["failure"]:
            raise EndpointError(row["failure"])
        results.append(Item.from_json(row["item"]))
    return results


def _run_batch(batch: dict[str, Any], stage: str, settings: SynthesisSettings) -> dict[str, list[str]]:
    """Runs a stage over a batch of items in JSON. Returns an EndpointError as text, because Ray wraps errors."""
    texts = list(batch["item"])
    if any(batch["failure"]):
        return {"item": texts, "failure": list(batch["failure"])}
    _set_decode_deadline(settings.video.stall_seconds)
    try:
        results = asyncio.run(_run_single_stage(stage, [Item.from_json(text) for text in texts], settings))
    except EndpointError as error:
        return {"item": texts, "failure": [str(error)] * len(texts)}
    return {"item": [item.to_json() for item in results], "failure": [""] * len(results)}


@cache
def _set_decode_deadline(seconds: float | None) -> None:
    """Starts the decode worker once per process with tasks."""
    use_worker(seconds)


async def _run_single_stage(stage: str, items: Sequence[Item], settings: SynthesisSettings) -> list[Item]:
    active = [item for item in items if item.rejection is None]
    async with Client(settings, settings.cache_folder) as client:
        results = await _run_stage(stage, active, client, lambda num_done, counts: None)
    return results + [item for item in items if item.rejection is not None]


_EXECUTORS = {"local": _execute_locally, "ray": _execute_on_ray}

"""All items through all stages: in this process, or on a Ray cluster. Both give the same items in the same order."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Sequence
from functools import cache
from math import ceil
from typing import Any

from videoseek.config import UsageError
from videoseek.progress import Progress
from videoseek.synthesis.endpoint import Endpoint, EndpointError, read_key
from videoseek.synthesis.items import Item
from videoseek.synthesis.running import run_stage
from videoseek.synthesis.settings import SynthesisSettings
from videoseek.synthesis.stage_client import Shared
from videoseek.synthesis.stages import STAGES
from videoseek.video.worker import use_worker

#: A Ray task waits for replies most of its time.
_CPUS_PER_TASK = 0.5


def drive(items: Sequence[Item], settings: SynthesisSettings) -> list[Item]:
    """The items with their endings or trajectories, in the order of their ids. Raises EndpointError or UsageError."""
    finished = _DRIVERS[settings.driver](items, settings)
    return sorted(finished, key=lambda item: item.id)


def _drive_here(items: Sequence[Item], settings: SynthesisSettings) -> list[Item]:
    return asyncio.run(_run_stages(items, settings))


async def _run_stages(items: Sequence[Item], settings: SynthesisSettings) -> list[Item]:
    """Stage by stage, so that the yield and the time left of each can be seen."""
    going, ended = list(items), []
    async with Endpoint(settings) as endpoint:
        shared = Shared(settings, endpoint)
        for name in STAGES:
            with Progress(name, len(going)) as progress:
                made = await run_stage(name, going, shared, progress.update)
            going = [item for item in made if item.ending is None]
            ended += [item for item in made if item.ending is not None]
    return going + ended


def _drive_on_ray(items: Sequence[Item], settings: SynthesisSettings) -> list[Item]:
    """Batches of `concurrency` items as Ray Data tasks, as many at once as the cluster has room for.

    The cache folder and the videos must be on disks that all machines share, the key's variable set on each of them.
    """
    try:
        ray: Any = importlib.import_module("ray")
        importlib.import_module("ray.data")
    except ImportError as error:
        raise UsageError("driver=ray needs Ray Data: pip install 'videoseek[data,ray]'") from error
    read_key(settings.api_key_env)  # said here in one sentence rather than by every task
    num_batches = max(ceil(len(items) / settings.concurrency), 1)
    rows = [{"item": item.to_json(), "failure": ""} for item in items]
    dataset = ray.data.from_items(rows, override_num_blocks=num_batches)
    for name in STAGES:
        dataset = dataset.map_batches(
            _run_batch,
            fn_kwargs={"name": name, "settings": settings},
            batch_size=settings.concurrency,
            num_cpus=_CPUS_PER_TASK,
        )
    finished = []
    for row in dataset.iter_rows():
        if row["failure"]:
            raise EndpointError(row["failure"])
        finished.append(Item.from_json(row["item"]))
    return finished


def _run_batch(batch: dict[str, Any], name: str, settings: SynthesisSettings) -> dict[str, list[str]]:
    """One stage over a batch of items as JSON. What ends the run is handed on as text: Ray would wrap an exception."""
    texts = list(batch["item"])
    if any(batch["failure"]):
        return {"item": texts, "failure": list(batch["failure"])}
    _read_under_deadline(settings.video.stall_seconds)
    try:
        made = asyncio.run(_run_one_stage(name, [Item.from_json(text) for text in texts], settings))
    except EndpointError as error:
        return {"item": texts, "failure": [str(error)] * len(texts)}
    return {"item": [item.to_json() for item in made], "failure": [""] * len(made)}


@cache
def _read_under_deadline(seconds: float | None) -> None:
    """Once for each process that runs tasks."""
    use_worker(seconds)


async def _run_one_stage(name: str, items: Sequence[Item], settings: SynthesisSettings) -> list[Item]:
    going = [item for item in items if item.ending is None]
    async with Endpoint(settings) as endpoint:
        made = await run_stage(name, going, Shared(settings, endpoint), lambda done, numbers: None)
    return made + [item for item in items if item.ending is not None]


_DRIVERS = {"local": _drive_here, "ray": _drive_on_ray}

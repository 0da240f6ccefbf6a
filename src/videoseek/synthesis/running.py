"""One item through one stage, many items through a stage: what every driver runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from videoseek.synthesis.endpoint import CallFailed
from videoseek.synthesis.items import UNFINISHED, Ending, Item
from videoseek.synthesis.stage_client import Asker, Rejected, Shared
from videoseek.synthesis.stages import STAGES
from videoseek.video.errors import VideoError


async def run_stage(
    name: str, items: Sequence[Item], shared: Shared, on_item: Callable[[int, Mapping[str, float]], None]
) -> list[Item]:
    """What the stage makes of the items that have not ended, in their order, however many are worked on at once.

    `on_item` is told how many are done, and numbers to show beside that. Raises EndpointError.
    """
    made: list[list[Item]] = [[] for _ in items]
    waiting = iter(enumerate(items))
    done = rejected = 0

    async def work() -> None:
        nonlocal done, rejected
        for index, item in waiting:
            made[index] = await run_item(name, item, shared)
            done += 1
            rejected += sum(result.ending is not None for result in made[index])
            on_item(done, {"rejected": rejected, "asked": shared.num_asked, "cached": shared.num_cached})

    await asyncio.gather(*(work() for _ in range(min(shared.settings.concurrency, len(items)))))
    return [result for results in made for result in results]


async def run_item(name: str, item: Item, shared: Shared) -> list[Item]:
    """One item through one stage: what ends it becomes its ending, and what it cost is booked on the first result."""
    asker = Asker(shared)
    try:
        first, *others = await STAGES[name](item, asker)
    except Rejected as error:
        first, others = _ended(item, name, error.code, error.reason), []
    except VideoError as error:
        first, others = _ended(item, name, error.code, error.message), []
    except CallFailed as error:
        first, others = _ended(item, name, UNFINISHED, str(error)), []
    if asker.usage.calls:
        first = replace(first, usage=first.usage | {name: asker.usage})
    return [first, *(replace(other, usage={}) for other in others)]


def _ended(item: Item, stage: str, code: str, reason: str) -> Item:
    return replace(item, ending=Ending(stage, code, reason))

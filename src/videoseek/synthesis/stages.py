"""The stages of Video-o3's data pipeline (arXiv 2601.23224), as functions from an item to the items that go on.

caption and question are its stage 0, localise is 1, verify and overview 2, trajectory 3, judge 4. A stage asks, gates
the reply and returns; it raises Rejected where the item ends. An item that brings what a stage makes passes through.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from videoseek.rewards.accuracy import tolerant_match
from videoseek.synthesis.inputs import made_id
from videoseek.synthesis.items import Caption, Clue, Ending, Item, Question, hash_number
from videoseek.synthesis.prompts import prompt
from videoseek.synthesis.quota import covered_share, tidy_clues
from videoseek.synthesis.rules import (
    captions_fault,
    clues_fault,
    judge_fault,
    question_fault,
    trajectory_fault,
    verdict_fault,
    written,
)
from videoseek.synthesis.settings import SynthesisSettings
from videoseek.synthesis.stage_client import Asker, Rejected
from videoseek.trajectory.grammar import FORMATS
from videoseek.trajectory.wording import lettered
from videoseek.types import Call, Clip, Interval, letter_options
from videoseek.video.decode import probe
from videoseek.video.quotas import crop_clip, overview_clip

Stage = Callable[[Item, Asker], Awaitable[list[Item]]]

#: False options beside the right one.
NUM_WRONG = 3


def caption_windows(duration_seconds: float, caption_seconds: float) -> list[Interval]:
    """The video in stretches of equal length, about `caption_seconds` each."""
    count = max(round(duration_seconds / caption_seconds), 1)
    edges = [duration_seconds * index / count for index in range(count)] + [duration_seconds]
    return list(zip(edges, edges[1:], strict=False))


async def caption(item: Item, asker: Asker) -> list[Item]:
    """Timestamped captions of every stretch, asked for side by side."""
    if item.captions or item.question is not None:
        return [item]
    info = await asyncio.to_thread(probe, item.video)
    windows = caption_windows(info.duration_seconds, asker.settings.caption_seconds)
    replies = await asyncio.gather(
        *(_caption_window(item, window, asker) for window in windows), return_exceptions=True
    )
    captions: list[Caption] = []
    for reply in replies:
        if isinstance(reply, BaseException):
            raise reply
        captions += reply
    if not captions:
        raise Rejected("no_captions", "nothing in the video was found worth a caption")
    return [replace(item, captions=tuple(captions))]


async def _caption_window(item: Item, window: Interval, asker: Asker) -> list[Caption]:
    start_seconds, end_seconds = window
    info = await asyncio.to_thread(probe, item.video)
    clip = crop_clip(info, start_seconds, end_seconds, "medium", asker.settings.video)
    times = {"start": round(start_seconds, 1), "end": round(end_seconds, 1)}
    reply = await asker.ask(
        "caption",
        [clip, prompt("caption", {"stretch": [times["start"], times["end"]]}, **times)],
        lambda reply: captions_fault(reply, start_seconds, end_seconds),
    )
    return [
        Caption(max(float(found["start"]), 0.0), min(float(found["end"]), info.duration_seconds), found["text"].strip())
        for found in reply["captions"]
    ]


async def question(item: Item, asker: Asker) -> list[Item]:
    """Questions from the captions alone; each becomes an item, those with a fault as rejected ones."""
    if item.question is not None:
        return [item]
    duration_seconds = (await asyncio.to_thread(probe, item.video)).duration_seconds
    number = asker.settings.questions_per_video
    values = {"duration": round(duration_seconds, 1), "number": number, "num_wrong": NUM_WRONG}
    reply = await asker.ask(
        "question",
        [prompt("question", {"captions": _caption_lines(item)}, **values)],
        lambda reply: None if len(reply["questions"]) <= number else f"there are more than {number} questions.",
    )
    if not reply["questions"]:
        raise Rejected("no_questions", "the captions offered no good question")
    return [
        _asked(item, made_id(item.source, index), found, duration_seconds, asker.settings)
        for index, found in enumerate(reply["questions"], 1)
    ]


def _asked(item: Item, id_: str, found: dict[str, Any], duration_seconds: float, settings: SynthesisSettings) -> Item:
    fault = question_fault(found, NUM_WRONG, duration_seconds)
    # Models put the right option first, or where they like it; its letter must say nothing.
    options = [option.strip() for option in (found["correct"], *found["wrong"])]
    shuffled = sorted(options, key=lambda option: hash_number(settings.seed, id_, option))
    answer = next(letter for letter, option in letter_options(shuffled) if option == options[0])
    evidence = () if fault else tuple((float(start), float(end)) for start, end in found["evidence"])
    made = Question(found["question"].strip(), tuple(shuffled), answer, evidence)
    return replace(item, id=id_, question=made, ending=Ending("question", *fault) if fault else None)


async def localise(item: Item, asker: Asker) -> list[Item]:
    """The windows that prove the answer, from the overview; on whole seconds, near ones joined, with their quotas."""
    settings = asker.settings
    info = await asyncio.to_thread(probe, item.video)
    duration_seconds = info.duration_seconds
    given = _question_lines(item) | {"captions": _caption_lines(item)}
    values = {"duration": round(duration_seconds, 1), "max_clues": settings.max_clues}
    reply = await asker.ask(
        "localise",
        [overview_clip(info, settings.video), prompt("localise", given, **values)],
        lambda reply: clues_fault(reply, duration_seconds),
    )
    found = [
        Clue(float(c["start"]), float(c["end"]), c["cue"].strip(), c["finding"].strip(), c["detail"], "")
        for c in reply["clues"]
    ]
    clues = tidy_clues(found, duration_seconds, settings.merge_gap_seconds, settings.video)
    if len(clues) > settings.max_clues:
        raise Rejected("too_many_clues", f"{len(clues)} clues lie apart, at most {settings.max_clues} are wanted")
    evidence = item.asked.evidence
    if evidence and not any(
        clue.start_seconds < end and start < clue.end_seconds for clue in clues for start, end in evidence
    ):
        raise Rejected("clue_elsewhere", "no clue overlaps the moments that the question was made from")
    return [replace(item, clues=clues, captions=())]  # of no more use from here on


async def verify(item: Item, asker: Asker) -> list[Item]:
    """Whether the clue clips alone, at the quota that the policy will pay, lead to the answer."""
    info = await asyncio.to_thread(probe, item.video)
    clips: list[Clip] = [crop_clip(info, *clue.window, clue.strategy, asker.settings.video) for clue in item.clues]
    reply = await _answer_from(clips, item, asker, overview=False)
    if not tolerant_match(reply["answer"], item.asked.answer):
        raise Rejected("wrong_answer", f"the clue clips led to {reply['answer']!r} instead of {item.asked.answer!r}")
    if not reply["certain"]:
        raise Rejected("uncertain", "the clue clips led to the answer by a guess only")
    return [replace(item, seen=reply["think"].strip())]


async def overview(item: Item, asker: Asker) -> list[Item]:
    """Whether the overview alone suffices, which makes the tool needless. An answer without certainty is a guess: one
    in four options is right by chance."""
    settings = asker.settings
    if not settings.check_overview:
        return [item]
    info = await asyncio.to_thread(probe, item.video)
    reply = await _answer_from([overview_clip(info, settings.video)], item, asker, overview=True)
    needs_tool = not (reply["certain"] and tolerant_match(reply["answer"], item.asked.answer))
    share = covered_share(item.clues, info.duration_seconds)
    if needs_tool and share > settings.max_clue_share:
        raise Rejected("clues_too_wide", f"the clues cover {share:.0%} of the video, so there is nothing to be found")
    # What answered from the overview explains a trajectory without a call better than what answered from the clips.
    return [replace(item, needs_tool=needs_tool, seen=item.seen if needs_tool else reply["think"].strip())]


async def _answer_from(clips: list[Clip], item: Item, asker: Asker, *, overview: bool) -> dict[str, Any]:
    asked = item.asked
    given = {"question": asked.text, "options": lettered(asked.options)}
    values = {"overview": overview, "num_clips": len(clips), "options": bool(asked.options)}
    return await asker.ask(
        "verify", [*clips, prompt("verify", given, **values)], lambda reply: verdict_fault(reply, asked)
    )


async def trajectory(item: Item, asker: Asker) -> list[Item]:
    """Thoughts around the calls, in the project's grammar. From words alone: the pictures were read by `verify`."""
    looks = item.clues if item.needs_tool else ()
    windows = [{"window": written(c.window), "cue": c.cue, "finding": c.finding} for c in looks]
    given = _question_lines(item) | {"windows": windows, "seen": item.seen}
    reply = await asker.ask(
        "trajectory",
        [prompt("trajectory", given, needs_tool=item.needs_tool, num_clues=len(looks))],
        lambda reply: trajectory_fault(reply, item.asked, looks),
    )
    fmt = FORMATS[asker.settings.format]()
    turns = [
        fmt.render_turn(step["think"].strip(), Call(*clue.window, clue.strategy), None)
        for step, clue in zip(reply["steps"], looks, strict=True)
    ]
    turns.append(fmt.render_turn(reply["final"]["think"].strip(), None, item.asked.answer))
    return [replace(item, turns=tuple(turns))]


async def judge(item: Item, asker: Asker) -> list[Item]:
    """Whether the thoughts hold, read beside the pictures that they are about."""
    info = await asyncio.to_thread(probe, item.video)
    limits = asker.settings.video
    clips = [overview_clip(info, limits)]
    if item.needs_tool:
        clips = [crop_clip(info, *clue.window, clue.strategy, limits) for clue in item.clues]
    given = _question_lines(item) | {"duration": round(info.duration_seconds, 1), "trajectory": list(item.turns)}
    reply = await asker.ask("judge", [*clips, prompt("judge", given, needs_tool=item.needs_tool)], judge_fault)
    if not reply["is_valid"]:
        raise Rejected(reply["faults"][0], f"{', '.join(reply['faults'])}: {reply['analysis'].strip()}")
    return [replace(item, analysis=reply["analysis"].strip())]


#: In order. Names are stable: they stand in summaries and rejections.
STAGES: dict[str, Stage] = {
    stage.__name__: stage for stage in (caption, question, localise, verify, overview, trajectory, judge)
}


def _question_lines(item: Item) -> dict[str, Any]:
    asked = item.asked
    return {"question": asked.text, "options": lettered(asked.options), "answer": asked.answer}


def _caption_lines(item: Item) -> list[str]:
    return [f"[{c.start_seconds:.1f}, {c.end_seconds:.1f}] {c.text}" for c in item.captions]

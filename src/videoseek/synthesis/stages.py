"""The stages of Video-o3's data pipeline (arXiv 2601.23224): functions from an item to the continuing items.

`caption` and `question` are the paper's stage 0, `localise` is 1, `verify` and `overview` are 2, `trajectory` is 3 and
`judge` is 4. A stage sends requests, checks the replies and returns items. A stage raises ItemRejected for a failed
item, and returns the item unchanged if the input already has the stage's result.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from videoseek.rewards.accuracy import tolerant_match
from videoseek.synthesis.client import ItemRejected, StageClient
from videoseek.synthesis.inputs import generated_id
from videoseek.synthesis.items import STAGES, Caption, Clue, Item, Question, Rejection, hash_number
from videoseek.synthesis.prompts import prompt
from videoseek.synthesis.rules import (
    captions_fault,
    clues_fault,
    covered_share,
    judge_fault,
    merge_clues,
    question_fault,
    trajectory_fault,
    verdict_fault,
    window_numbers,
)
from videoseek.synthesis.settings import SynthesisSettings
from videoseek.trajectory.formats import FORMATS
from videoseek.trajectory.wording import lettered
from videoseek.types import Call, Clip, Interval, letter_options
from videoseek.video.decode import probe
from videoseek.video.quotas import crop_clip, overview_clip

Stage = Callable[[Item, StageClient], Awaitable[list[Item]]]

#: Number of wrong options of a generated question.
NUM_WRONG = 3


def caption_windows(duration_seconds: float, caption_seconds: float) -> list[Interval]:
    """Splits the video into windows of equal length, about `caption_seconds` each."""
    count = max(round(duration_seconds / caption_seconds), 1)
    edges = [duration_seconds * index / count for index in range(count)] + [duration_seconds]
    return list(zip(edges, edges[1:], strict=False))


async def caption_video(item: Item, client: StageClient) -> list[Item]:
    """Writes timestamped captions of all windows, with concurrent requests."""
    if item.captions or item.question is not None:
        return [item]
    info = await asyncio.to_thread(probe, item.video)
    windows = caption_windows(info.duration_seconds, client.settings.caption_seconds)
    replies = await asyncio.gather(
        *(_caption_window(item, window, client) for window in windows), return_exceptions=True
    )
    captions: list[Caption] = []
    for reply in replies:
        if isinstance(reply, BaseException):
            raise reply
        captions += reply
    if not captions:
        raise ItemRejected("no_captions", "nothing in the video was found worth a caption")
    return [replace(item, captions=tuple(captions))]


async def _caption_window(item: Item, window: Interval, client: StageClient) -> list[Caption]:
    start_seconds, end_seconds = window
    info = await asyncio.to_thread(probe, item.video)
    clip = crop_clip(info, start_seconds, end_seconds, "medium", client.settings.video)
    times = {"start": round(start_seconds, 1), "end": round(end_seconds, 1)}
    reply = await client.ask(
        "caption",
        [clip, prompt("caption", {"stretch": [times["start"], times["end"]]}, **times)],
        lambda reply: captions_fault(reply, start_seconds, end_seconds),
    )
    return [
        Caption(
            start_seconds=max(float(caption["start"]), 0.0),
            end_seconds=min(float(caption["end"]), info.duration_seconds),
            text=caption["text"].strip(),
        )
        for caption in reply["captions"]
    ]


async def generate_questions(item: Item, client: StageClient) -> list[Item]:
    """Generates questions from the captions alone. Each question becomes an item; a faulty question is rejected."""
    if item.question is not None:
        return [item]
    duration_seconds = (await asyncio.to_thread(probe, item.video)).duration_seconds
    max_questions = client.settings.questions_per_video
    values = {"duration": round(duration_seconds, 1), "number": max_questions, "num_wrong": NUM_WRONG}
    reply = await client.ask(
        "question",
        [prompt("question", {"captions": _caption_lines(item)}, **values)],
        lambda reply: (
            None if len(reply["questions"]) <= max_questions else f"there are more than {max_questions} questions."
        ),
    )
    if not reply["questions"]:
        raise ItemRejected("no_questions", "the captions offered no good question")
    return [
        _question_item(item, generated_id(item.source, number), record, duration_seconds, client.settings)
        for number, record in enumerate(reply["questions"], 1)
    ]


def _question_item(
    item: Item, id_: str, record: dict[str, Any], duration_seconds: float, settings: SynthesisSettings
) -> Item:
    fault = question_fault(record, NUM_WRONG, duration_seconds)
    # Models tend to put the right option first. The shuffle makes the letter carry no information.
    options = [option.strip() for option in (record["correct"], *record["wrong"])]
    shuffled = sorted(options, key=lambda option: hash_number(settings.seed, id_, option))
    answer = next(letter for letter, option in letter_options(shuffled) if option == options[0])
    evidence = () if fault else tuple((float(start), float(end)) for start, end in record["evidence"])
    question = Question(record["question"].strip(), tuple(shuffled), answer, evidence)
    return replace(item, id=id_, question=question, rejection=Rejection("question", *fault) if fault else None)


async def localise_clues(item: Item, client: StageClient) -> list[Item]:
    """Finds the windows that prove the answer in the overview, rounds and merges windows and sets quotas."""
    settings = client.settings
    question = item.require_question()
    info = await asyncio.to_thread(probe, item.video)
    duration_seconds = info.duration_seconds
    task_input = _question_lines(item) | {"captions": _caption_lines(item)}
    values = {"duration": round(duration_seconds, 1), "max_clues": settings.max_clues}
    reply = await client.ask(
        "localise",
        [overview_clip(info, settings.video), prompt("localise", task_input, **values)],
        lambda reply: clues_fault(reply, duration_seconds),
    )
    raw_clues = [
        Clue(float(c["start"]), float(c["end"]), c["cue"].strip(), c["finding"].strip(), c["detail"], "")
        for c in reply["clues"]
    ]
    clues = merge_clues(raw_clues, duration_seconds, settings.merge_gap_seconds, settings.video)
    if len(clues) > settings.max_clues:
        raise ItemRejected("too_many_clues", f"{len(clues)} clues lie apart, at most {settings.max_clues} are wanted")
    if question.evidence and not any(
        clue.start_seconds < end and start < clue.end_seconds for clue in clues for start, end in question.evidence
    ):
        raise ItemRejected("clue_elsewhere", "no clue overlaps the moments that the question was made from")
    return [replace(item, clues=clues, captions=())]  # later stages do not use the captions


async def verify_clues(item: Item, client: StageClient) -> list[Item]:
    """Checks that the clue clips alone, at the quota of training, lead to the answer."""
    answer = item.require_question().answer
    info = await asyncio.to_thread(probe, item.video)
    clips: list[Clip] = [crop_clip(info, *clue.window, clue.strategy, client.settings.video) for clue in item.clues]
    reply = await _answer_from(clips, item, client, overview=False)
    if not tolerant_match(reply["answer"], answer):
        raise ItemRejected("wrong_answer", f"the clue clips led to {reply['answer']!r} instead of {answer!r}")
    if not reply["certain"]:
        raise ItemRejected("uncertain", "the clue clips led to the answer by a guess only")
    return [replace(item, rationale=reply["think"].strip())]


async def check_overview(item: Item, client: StageClient) -> list[Item]:
    """Checks whether the overview alone leads to the answer and makes a tool call needless.

    An uncertain answer counts as wrong, because a guess among four options is right in one of four cases.
    """
    settings = client.settings
    if not settings.check_overview:
        return [item]
    info = await asyncio.to_thread(probe, item.video)
    reply = await _answer_from([overview_clip(info, settings.video)], item, client, overview=True)
    needs_tool = not (reply["certain"] and tolerant_match(reply["answer"], item.require_question().answer))
    share = covered_share(item.clues, info.duration_seconds)
    if needs_tool and share > settings.max_clue_share:
        raise ItemRejected(
            "clues_too_wide", f"the clues cover {share:.0%} of the video, so there is nothing to be found"
        )
    # The overview instead of the clips must explain a trajectory without a call.
    return [replace(item, needs_tool=needs_tool, rationale=item.rationale if needs_tool else reply["think"].strip())]


async def _answer_from(clips: list[Clip], item: Item, client: StageClient, *, overview: bool) -> dict[str, Any]:
    question = item.require_question()
    task_input = {"question": question.text, "options": lettered(question.options)}
    values = {"overview": overview, "num_clips": len(clips), "options": bool(question.options)}
    return await client.ask(
        "verify", [*clips, prompt("verify", task_input, **values)], lambda reply: verdict_fault(reply, question)
    )


async def write_trajectory(item: Item, client: StageClient) -> list[Item]:
    """Writes the thinks around the calls, in the project's grammar, from text: `verify` has described the pictures."""
    question = item.require_question()
    clues = item.clues if item.needs_tool else ()
    windows = [{"window": window_numbers(c.window), "cue": c.cue, "finding": c.finding} for c in clues]
    task_input = _question_lines(item) | {"windows": windows, "seen": item.rationale}
    reply = await client.ask(
        "trajectory",
        [prompt("trajectory", task_input, needs_tool=item.needs_tool, num_clues=len(clues))],
        lambda reply: trajectory_fault(reply, question, clues),
    )
    fmt = FORMATS[client.settings.format]()
    turns = [
        fmt.render_turn(step["think"].strip(), Call(*clue.window, clue.strategy), None)
        for step, clue in zip(reply["steps"], clues, strict=True)
    ]
    turns.append(fmt.render_turn(reply["final"]["think"].strip(), None, question.answer))
    return [replace(item, turns=tuple(turns))]


async def judge_trajectory(item: Item, client: StageClient) -> list[Item]:
    """Checks the thinks against the described pictures."""
    info = await asyncio.to_thread(probe, item.video)
    limits = client.settings.video
    clips = [overview_clip(info, limits)]
    if item.needs_tool:
        clips = [crop_clip(info, *clue.window, clue.strategy, limits) for clue in item.clues]
    task_input = _question_lines(item) | {"duration": round(info.duration_seconds, 1), "trajectory": list(item.turns)}
    reply = await client.ask("judge", [*clips, prompt("judge", task_input, needs_tool=item.needs_tool)], judge_fault)
    if not reply["is_valid"]:
        raise ItemRejected(reply["faults"][0], f"{', '.join(reply['faults'])}: {reply['analysis'].strip()}")
    return [replace(item, analysis=reply["analysis"].strip())]


_FUNCTIONS: tuple[Stage, ...] = (
    *(caption_video, generate_questions, localise_clues, verify_clues),
    *(check_overview, write_trajectory, judge_trajectory),
)
#: Name of a stage -> its function, in order.
STAGE_FUNCTIONS: dict[str, Stage] = dict(zip(STAGES, _FUNCTIONS, strict=True))


def _question_lines(item: Item) -> dict[str, Any]:
    question = item.require_question()
    return {"question": question.text, "options": lettered(question.options), "answer": question.answer}


def _caption_lines(item: Item) -> list[str]:
    return [f"[{c.start_seconds:.1f}, {c.end_seconds:.1f}] {c.text}" for c in item.captions]

"""`python -m videoseek.ask VIDEO "QUESTION" model=DIR`: prints an answer and the clips behind the answer.

The command also takes every key of a training run: prompt, quotas and limits can match the training. A model in a run's
folder loads the run's config.yaml. Decoding is greedy.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from videoseek.command import FLAGS, parse, recipe_of_model, run_command, wants_help
from videoseek.config import UsageError, option
from videoseek.config_merge import config_keys, load_settings
from videoseek.types import Call, CallRecord, Clip, Episode, Sample

USAGE = 'python -m videoseek.ask VIDEO "QUESTION" model=DIR [options=[ANSWER, ...]] [out=FILE.html] [key=value ...]'


@dataclass(frozen=True)
class AskSettings:
    """The keys of `ask` beyond the keys of a training run."""

    options: list[str] = option([], "answers to choose from; without any, the model answers in words")
    out: str | None = option(None, "page to write (.html), with the frames of every clip")


def main(arguments: list[str]) -> None:
    own_keys = config_keys(AskSettings())
    if wants_help(arguments):
        parse(["--help"], USAGE, flags=("--help",), own_keys=own_keys)
    if len(arguments) < 2:
        raise UsageError(f"a video and a question are wanted; usage: {USAGE}")
    video, question, *rest = arguments
    own = [argument for argument in rest if argument.removeprefix("--").partition("=")[0] in own_keys]
    settings = load_settings(AskSettings(), own)
    if settings.out is not None and not settings.out.endswith(".html"):
        raise UsageError(f"out must end in .html, got {settings.out!r}")
    flags = [argument for argument in rest if argument in FLAGS]
    keys = recipe_of_model([argument for argument in rest if argument not in (*own, *flags)])
    _, config = parse([*flags, *keys], USAGE, flags=("--help",))
    # torch and transformers take seconds to import: errors in the arguments come first.
    from videoseek.distributed import choose_device
    from videoseek.files import write_text
    from videoseek.model.load import model_folder
    from videoseek.pages.page import document
    from videoseek.pages.viewer import record_article
    from videoseek.rollout.setup import load_policy, rollout_engine, sampling_settings
    from videoseek.trajectory_record import TrajectoryRecord

    sample = Sample(
        id="question",
        video=video,
        question=question,
        answer="unknown",  # the true answer is unknown, and the episode gets no score
        kind="clue_single_w_tool",
        options=tuple(settings.options),
    )
    folder = model_folder(config.model, config.position_rule)
    policy, environment = load_policy(folder, config, choose_device(config.device))
    engine = rollout_engine(policy, environment, config)
    [[episode]] = engine.rollout([sample], 1, config.seed, sampling_settings(config, temperature=0.0))
    sys.stdout.writelines(f"{line}\n" for line in trail(episode))
    if settings.out is not None:
        article = record_article(TrajectoryRecord.from_episode(episode), "Calls", [])
        write_text(Path(settings.out), document(f"Answer: {_answer_line(episode)}", [article]))


def trail(episode: Episode) -> Iterator[str]:
    """Yields a line for each clip, each assistant turn and the answer, in order."""
    yield f"overview  {_clip_line(episode.clips[0])}"
    assistant = -1
    for turn in episode.turns:
        if turn.role != "assistant":
            continue
        assistant += 1
        yield f"turn {assistant + 1}    {' '.join(turn.text.split())}"
        yield from (_call_line(record) for record in episode.calls if record.turn == assistant)
    yield f"answer    {_answer_line(episode)}"


def _clip_line(clip: Clip) -> str:
    size = f"{len(clip.frame_seconds)} frames of {clip.width} x {clip.height} px, {clip.num_tokens} tokens"
    return f"{clip.start_seconds:.1f} to {clip.end_seconds:.1f} s: {size}"


def _call_line(record: CallRecord) -> str:
    if record.clip is not None:
        return f"  {'crop' if isinstance(record.call, Call) else 'clip'}    {_clip_line(record.clip)}"
    if record.text is not None:
        return f"  text    {' '.join(record.text.split())}"
    return f"  failed  {record.fault.message if record.fault is not None else 'no readable call'}"


def _answer_line(episode: Episode) -> str:
    """Returns the model's answer, with the option's text after a letter."""
    if episode.answer is None:
        return f"none ({str(episode.stop_reason).replace('_', ' ')})"
    chosen = dict(episode.sample.lettered_options).get(episode.answer.strip())
    return episode.answer if chosen is None else f"{episode.answer.strip()}. {chosen}"


if __name__ == "__main__":
    raise SystemExit(run_command(main))

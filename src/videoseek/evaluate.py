"""`python -m videoseek.evaluate model=DIR tasks=[videomme, mlvu] data_root=DIR`: scores a model on benchmarks.

The command takes every key of a training run: prompt, quotas and limits can match the training. A model in a run's
folder loads the run's config.yaml; `recipe=` names another recipe. The keys of `evaluate.` may stand without their
group: `limit=256` is `evaluate.limit=256`.

output_dir/MODEL/MODE-HASH/TASK/
    answers.jsonl  results.json

`model=openai:NAME endpoint=URL` asks a model behind an OpenAI-compatible endpoint by the same protocol.

A second call continues an interrupted one, and adds nothing to a finished one. Without tasks the command scores the
sampled and greedy episodes on the held-out questions of `data.eval`, as training does at its end.

output_dir/
    config.yaml  env.json  summary.json  trajectories/eval_NAME.jsonl  report.html
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import fields
from functools import partial

from videoseek.command import FLAGS, parse, recipe_of_model, run_command
from videoseek.config import EvaluateConfig
from videoseek.runtime import rank

USAGE = "python -m videoseek.evaluate model=DIR [tasks=[NAME, ...] data_root=DIR] [data.eval=[FILE.jsonl, ...]] \
[output_dir=DIR] [key=value ...]"
#: Defaults stronger than the run's own recipe: an evaluation must not write to the run's folder by accident.
DEFAULTS = ["output_dir=runs/evaluate", "resume=no"]
#: The folder of benchmarks, which no evaluation on `data.eval` moves aside.
BENCHMARKS_DIR = "output_dir=runs/benchmarks"


def main(arguments: list[str]) -> None:
    flags = [argument for argument in arguments if argument in FLAGS or argument == "-h"]
    rest = with_group([argument for argument in arguments if argument not in flags])
    about_tasks = any(argument.removeprefix("--").startswith("evaluate.tasks=") for argument in rest)
    defaults = [BENCHMARKS_DIR, *DEFAULTS[1:]] if about_tasks else DEFAULTS
    options, config = parse([*flags, *recipe_of_model(rest)], USAGE, defaults=defaults)
    # deepspeed and transformers take many seconds to import: errors in the arguments come first.
    if config.evaluate.tasks:
        from videoseek.evaluation.tasks import find_tasks

        find_tasks(config.evaluate)
    from videoseek.distributed import choose_accelerator

    choose_accelerator(config.device)
    from videoseek.attempts import end_attempt
    from videoseek.distributed import barrier
    from videoseek.engine import end_distributed
    from videoseek.evaluation.benchmarks import evaluate_tasks, run_folder
    from videoseek.evaluation.endpoint_engine import endpoint_settings
    from videoseek.evaluation.model_scores import score_model
    from videoseek.evaluation.runner import endpoint_model, open_model
    from videoseek.evaluation.scores import summary_of
    from videoseek.files import write_json
    from videoseek.model.load import model_folder
    from videoseek.pages.report import write_report
    from videoseek.runtime import say
    from videoseek.stages.loading import load_split
    from videoseek.stages.run_folder import start_folder, start_run

    started = time.monotonic()
    endpoint = endpoint_settings(config)
    context = start_run(config)
    if endpoint is not None:
        cache_dir = run_folder(config, None, context.output_dir).parent / "replies"
        load_remote = partial(endpoint_model, config, endpoint, cache_dir)
        evaluate_tasks(config, None, load_remote, context.output_dir, dry_run=options.dry_run)
        return end_distributed()
    folder = model_folder(config.model, config.position_rule)
    if config.evaluate.tasks:
        load_model = partial(open_model, config, folder, context.device)
        evaluate_tasks(config, folder, load_model, context.output_dir, dry_run=options.dry_run)
        return end_distributed()
    samples = load_split(config, "eval")[: config.evaluate.num_questions]
    if options.dry_run:
        say(f"  {len(samples)} questions are in order")
    else:
        if rank() == 0:
            start_folder(config, context.output_dir)
        barrier()
        values = score_model(config, context.device, folder, folder.name, samples, context.output_dir)
        if rank() == 0:
            seconds = end_attempt(context.output_dir, time.monotonic() - started)
            summary = summary_of(config, {folder.name: values}, seconds)
            write_json(context.output_dir / "summary.json", summary)
            say(f"report: {write_report(context.output_dir)}")
    end_distributed()


def with_group(arguments: Sequence[str]) -> list[str]:
    """Puts `evaluate.` before the keys of that group."""
    names = {field.name for field in fields(EvaluateConfig)}
    named = []
    for argument in arguments:
        key, equals, value = argument.removeprefix("--").partition("=")
        dashes = "--" if argument.startswith("--") else ""
        named.append(f"{dashes}evaluate.{key}{equals}{value}" if key in names and (dashes or equals) else argument)
    return named


if __name__ == "__main__":
    raise SystemExit(run_command(main))

"""`python -m videoseek.evaluate model=DIR data.eval=[FILE.jsonl]`: scores a model on held-out questions.

The command takes every key of a training run: prompt, quotas and limits can match the training. A model in a run's
folder loads the run's config.yaml; `recipe=` names another recipe.

output_dir/
    config.yaml  env.json  summary.json  trajectories/eval_NAME.jsonl  report.html
"""

from __future__ import annotations

import time

from videoseek.command import FLAGS, parse, recipe_of_model, run_command
from videoseek.runtime import rank

USAGE = "python -m videoseek.evaluate model=DIR [data.eval=[FILE.jsonl, ...]] [output_dir=DIR] [key=value ...]"
#: Defaults stronger than the run's own recipe: an evaluation must not write to the run's folder by accident.
DEFAULTS = ["output_dir=runs/evaluate", "resume=no"]


def main(arguments: list[str]) -> None:
    flags = [argument for argument in arguments if argument in FLAGS or argument == "-h"]
    rest = [argument for argument in arguments if argument not in flags]
    options, config = parse([*flags, *with_defaults(recipe_of_model(rest))], USAGE)
    # torch and transformers take seconds to import: errors in the arguments come first.
    from videoseek.distributed import choose_accelerator

    choose_accelerator(config.device)
    from videoseek.attempts import end_attempt
    from videoseek.distributed import barrier
    from videoseek.engine import end_distributed
    from videoseek.evaluation.model_scores import score_model
    from videoseek.evaluation.scores import summary_of
    from videoseek.files import write_json
    from videoseek.model.load import model_folder
    from videoseek.pages.report import write_report
    from videoseek.runtime import say
    from videoseek.stages.loading import load_split
    from videoseek.stages.run_folder import start_folder, start_run

    started = time.monotonic()
    context = start_run(config)
    folder = model_folder(config.model)
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


def with_defaults(arguments: list[str]) -> list[str]:
    """Puts the command's defaults before the arguments, except for keys already among the arguments."""
    given_keys = {argument.removeprefix("--").partition("=")[0] for argument in arguments}
    return [*(default for default in DEFAULTS if default.partition("=")[0] not in given_keys), *arguments]


if __name__ == "__main__":
    raise SystemExit(run_command(main))
